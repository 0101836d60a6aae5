"""Archives and files that data sets come from."""
