"""Run ``python -m hnas.benchmarks.zoo``."""

import sys

from hnas.benchmarks.zoo.command import main

if __name__ == "__main__":
    sys.exit(main())
