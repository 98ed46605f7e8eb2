"""Check and compare artifacts with ``hnas-bench``, and measure the project itself. No other package imports this one."""
