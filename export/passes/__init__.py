"""The passes: each takes a program and returns another that computes the same. `export.fusion` runs them."""
