"""Published claims put to the test: one file a method, each a command that prints a verdict and writes JSON."""
