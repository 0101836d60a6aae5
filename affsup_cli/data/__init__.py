"""Prepared data sets -> batches on the device."""
