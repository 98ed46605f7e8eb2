"""Random networks, and what is asked of each: the parts of ``python -m hnas.benchmarks.fuzz``."""
