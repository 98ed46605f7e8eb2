"""Measure what single parts of the program cost."""
