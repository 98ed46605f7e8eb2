"""Test published claims: one study for each claim, run by ``python -m hnas.benchmarks.papers STUDY``."""
