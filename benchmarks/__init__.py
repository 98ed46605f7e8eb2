"""Check and compare artifacts with ``hnas-bench``, and measure the project. No other package imports this one."""
