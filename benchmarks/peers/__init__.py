"""Compare our artifacts with those of each runtime's own tools: ``python -m hnas.benchmarks.peers``."""
