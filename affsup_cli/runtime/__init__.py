"""Devices, stop requests and child processes."""
