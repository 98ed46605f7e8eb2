"""The passes: each takes a program and returns another that computes the same. `hnas.export.graph.fusion` runs them."""
