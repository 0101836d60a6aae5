"""Pictures decoded to arrays, on all cores."""
