"""Studies: declared grids of runs, made in pieces, and read from records."""
