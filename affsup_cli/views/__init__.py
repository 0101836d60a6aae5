"""What the terminal shows: tables, live lines, model cards."""
