"""Train every cell of ``nasbench201(nodes=3)`` alone: ``python -m hnas.benchmarks.papers.cells_table --out FILE``.

A cell of three nodes has three edges: 0 -> 1, 0 -> 2 and 1 -> 2. Its output is the sum of the edge 0 -> 2 and of the
path over node 1. Cells that compute the same function are one network (``network_of``). A training takes about a second
of a core.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from hnas.benchmarks.papers import lone_table
from hnas.benchmarks.papers.lone_table import LoneTable
from hnas.spaces.nasbench201 import NONE, SKIPS

SPACE = "nasbench201"
ARGUMENTS: dict[str, Any] = {"nodes": 3, "width": 2, "cells": 1, "resolution": 8}
_WEIGHTLESS = (*NONE, *SKIPS, "avg_pool_3x3")


def network_of(types: Sequence[str]) -> tuple[str, ...]:
    """Return the first cell, in the order of the space, that computes the same function.

    1. ``none`` on the edge 1 -> 2: the type of the edge 0 -> 1 is without effect.
    2. ``none`` on the edge 0 -> 1, and no weights after it: the path gives zeros.
    3. ``skip_connect`` on one edge of the path: the path is the other edge.
    4. The output is a sum: a path that is one edge, and the edge 0 -> 2, may change places.
    """
    return _representatives()[_function_of(types)]


def connected(types: Sequence[str]) -> bool:
    """Return whether the cell passes its input on to its output at all."""
    first, direct, last = types
    return direct not in NONE or not {first, last} & set(NONE)


def _function_of(types: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return the terms of the cell's sum, sorted; each term is the types along one way from input to output."""
    first, direct, last = types
    if last in NONE or (first in NONE and last in _WEIGHTLESS):
        path: tuple[str, ...] = NONE  # case 1, case 2
    else:
        path = tuple(kind for kind in (first, last) if kind not in SKIPS) or SKIPS  # case 3
    return tuple(sorted([(direct,), path]))  # case 4


@lru_cache(1)
def _representatives() -> dict[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    found: dict[tuple[tuple[str, ...], ...], tuple[str, ...]] = {}
    for types in TABLE.members():
        found.setdefault(_function_of(types), types)
    return found


TABLE = LoneTable(
    command="hnas.benchmarks.papers.cells_table",
    describes="Train every cell of nasbench201(nodes=3) alone, then write the table.",
    space=SPACE,
    arguments=ARGUMENTS,
    network_of=network_of,
    steps=100,
    rate=0.4,
    batch=128,
    parts=Path("runs/papers/cells"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Make the table; return the exit code of ``lone_table.main``."""
    return lone_table.main(TABLE, argv)


if __name__ == "__main__":
    sys.exit(main())
