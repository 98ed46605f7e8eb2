"""Shrink a search space by evidence, and undo weight sharing."""
