"""Run artifacts: the half of `export` that travels to a device. Plain Python 3.8 and numpy, sent as a whole."""
