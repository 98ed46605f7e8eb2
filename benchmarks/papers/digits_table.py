"""Train every architecture of ``tabular_digits`` alone: ``python -m hnas.benchmarks.papers.digits_table --out FILE``.

Architectures that differ only in the places of their identities are one network when trained alone. So 341 networks
stand behind the 625 rows, and equal networks have equal figures. A training takes about a second of a core.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from hnas.benchmarks.papers import lone_table
from hnas.benchmarks.papers.lone_table import LoneTable


def network_of(types: Sequence[str]) -> tuple[str, ...]:
    """Return the types with all identities first. Architectures with an equal result are the same network."""
    return tuple(sorted(types, key=lambda kind: kind != "identity"))


# Steps, rate and batch are from a pilot of 20 architectures and 2 seeds, with 60 to 200 steps, batches of 64 to 256 and
# rates of 0.1 to 1. With these values, architectures differ 6 times as much (in standard deviations) as the seeds of
# one architecture.
TABLE = LoneTable(
    command="hnas.benchmarks.papers.digits_table",
    describes="Train every architecture of tabular_digits alone, then write the table.",
    space="tabular_digits",
    arguments={},
    network_of=network_of,
    steps=100,
    rate=0.4,
    batch=128,
    parts=Path("runs/papers/digits"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Make the table; return the exit code of ``lone_table.main``."""
    return lone_table.main(TABLE, argv)


if __name__ == "__main__":
    sys.exit(main())
