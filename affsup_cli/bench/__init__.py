"""The speed of each kind of run on generated data, and the hours that tables take at these speeds."""
