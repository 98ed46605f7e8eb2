"""``python -m benchmarks`` is ``hnas-bench``."""

import sys

from benchmarks.cli import main

sys.exit(main())
