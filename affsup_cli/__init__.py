"""Affinity graph supervision for visual recognition: the loss, and the experiments of its paper."""

from data_prep.version import __version__

__all__ = ["__version__"]
