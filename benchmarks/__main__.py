"""Run ``hnas-bench`` as ``python -m hnas.benchmarks``."""

import sys

from hnas.benchmarks.cli import main

sys.exit(main())
