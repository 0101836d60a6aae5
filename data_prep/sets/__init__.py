"""One module per data set, which defines `DATASET`; large libraries are imported inside functions, not at the top."""
