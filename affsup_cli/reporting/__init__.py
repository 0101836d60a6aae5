"""Run folders to tables and figures; which runs a table needs, and which of them are there. No torch."""
