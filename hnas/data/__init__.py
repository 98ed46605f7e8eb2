"""Read data sets from disk. No torch."""
