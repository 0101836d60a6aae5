"""One module a data set, each defining `DATASET`. They are imported to list their names: nothing heavy at the top."""
