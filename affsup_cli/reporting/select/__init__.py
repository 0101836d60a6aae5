"""Which runs belong to a table, and the statistics over their seeds."""
