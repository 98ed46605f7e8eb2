"""Measure the cost of single parts of the program: ``python -m hnas.benchmarks.costs.{supernet,overhead,arm64}``."""
