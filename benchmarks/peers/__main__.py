"""Run ``python -m hnas.benchmarks.peers``."""

import sys

from hnas.benchmarks.peers.command import main

if __name__ == "__main__":
    sys.exit(main())
