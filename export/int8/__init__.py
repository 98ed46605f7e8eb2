"""Quantise: calibration ranges, the common policy, and the recovery of accuracy."""
