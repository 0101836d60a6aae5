"""What a machine is worth: the speed of every kind of run on generated data, and the hours that tables take on it."""
