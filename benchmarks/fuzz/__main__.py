"""Run ``python -m hnas.benchmarks.fuzz``."""

import sys

from hnas.benchmarks.fuzz.command import main

if __name__ == "__main__":
    sys.exit(main())
