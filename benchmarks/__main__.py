"""``python -m benchmarks`` is ``hnas-bench``."""

import sys

from hnas.benchmarks.cli import main

sys.exit(main())
