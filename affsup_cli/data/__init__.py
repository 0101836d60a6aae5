"""Batches on the device from prepared data sets."""
