"""The harness: do the speedups still hold? Nobody imports it; it is the command ``hnas-bench``."""
