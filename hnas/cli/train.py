"""Run ``hnas-train`` as a module.

Call ``torchrun --nproc-per-node 2 -m hnas.cli.train --recipe NAME ...``.
"""

import sys

from hnas.cli import train_main

if __name__ == "__main__":
    sys.exit(train_main())
