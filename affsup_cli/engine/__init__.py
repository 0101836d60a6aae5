"""The loop that drives any task, and the run folder it writes. Knows no task by name."""
