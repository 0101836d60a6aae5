"""The version of affsup."""

__version__ = "0.1.0"
