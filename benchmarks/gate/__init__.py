"""Re-measure bundles and decide whether their claims hold: `hnas-bench`."""
