"""Measure the cost of single parts: ``python -m hnas.benchmarks.costs.{supernet,recurrent,overhead,waiting,arm64}``."""
