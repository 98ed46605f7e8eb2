"""Run ``python -m hnas.benchmarks.own_images``."""

import sys

from hnas.benchmarks.own_images.command import main

if __name__ == "__main__":
    sys.exit(main())
