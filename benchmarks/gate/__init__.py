"""The gate: check the claim of a bundle, or compare two artifacts; the command ``hnas-bench``."""
