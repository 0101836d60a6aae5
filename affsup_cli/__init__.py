"""Affinity graph supervision for visual recognition: the loss, and the experiments of its paper."""

__version__ = "0.1.0"
