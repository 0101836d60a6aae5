"""Object detection and relationship proposals."""
