"""Fuzz the compiler with random networks: ``python -m hnas.benchmarks.fuzz``."""
