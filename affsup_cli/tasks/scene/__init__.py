"""Scene classification."""
