"""Many members of a space as one index array, so that thousands can be scored without building them.

A row holds, for every choice in the order of the space, the index of its option, or ``INACTIVE``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hnas.space import Arch, Option, Space

Rows = NDArray[np.int64]
INACTIVE = -1


def draw_rows(space: Space, count: int, rng: np.random.Generator, balance: Option | None = None) -> Rows:
    """Return [count, choices]: members with uniform, independent choices, each option equally often (or one less).

    balance: an option of the slots ("identity") whose number in a member is drawn first, uniformly, which balances
        depth as in the code of ABS (arXiv 2004.13431). The other types of a slot share the rest equally. None: no such
        option.
    """
    columns = [rng.permutation(np.arange(count) % len(choice.options)) for choice in space.choices.values()]
    rows = np.stack(columns, 1).astype(np.int64) if columns else np.zeros((count, 0), np.int64)
    if balance is not None:
        _balance(space, rows, rng, balance)
    return _deactivate(space, rows)


def member_of(space: Space, row: Rows) -> Arch:
    """Return the member that a row stands for."""
    named = zip(space.choices.items(), row, strict=True)
    return space.arch({name: choice.options[int(k)] for (name, choice), k in named if k != INACTIVE})


def rows_of(space: Space, archs: Sequence[Arch]) -> Rows:
    """Return [archs, choices]: the rows of members of ``space``."""
    rows = np.full((len(archs), len(space.choices)), INACTIVE, np.int64)
    for row, arch in zip(rows, archs, strict=True):
        for column, (name, choice) in enumerate(space.choices.items()):
            if name in arch:
                row[column] = choice.options.index(arch[name])
    return rows


def column_of(space: Space, name: str) -> int:
    """Return the column of the choice ``name``."""
    return list(space.choices).index(name)


def mean_by_option(rows: Rows, at: int, options: int, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return [options]: the mean of finite ``values`` over the rows with that option in column ``at``; NaN for none."""
    used = (rows[:, at] != INACTIVE) & np.isfinite(values)
    taken = rows[used, at]
    totals, counts = np.bincount(taken, values[used], options), np.bincount(taken, minlength=options)
    means: NDArray[np.float64] = np.divide(totals, counts, out=np.full(options, np.nan), where=counts > 0)
    return means


def _balance(space: Space, rows: Rows, rng: np.random.Generator, option: Option) -> None:
    slots = [(at, c) for at, (name, c) in enumerate(space.choices.items()) if name.endswith(".op")]
    slots = [(at, choice) for at, choice in slots if option in choice.options and len(choice.options) > 1]
    order = rng.random((len(rows), len(slots))).argsort(1).argsort(1)
    without = order >= rng.integers(0, len(slots) + 1, (len(rows), 1))
    for (at, choice), other in zip(slots, without.T, strict=True):
        rest = np.array([k for k, o in enumerate(choice.options) if o != option])
        rows[:, at] = choice.options.index(option)
        rows[other, at] = rest[rng.permutation(np.arange(int(other.sum())) % len(rest))]


def _deactivate(space: Space, rows: Rows) -> Rows:
    """Write ``INACTIVE`` where a choice is inactive. A parent is decided before the choices that depend on it."""
    names = list(space.choices)
    settled: set[str] = set()

    def settle(name: str) -> None:
        when = space.choices[name].when
        if name in settled or when is None:
            return
        settle(when[0])
        parent = space.choices[when[0]].options
        active = [parent.index(option) for option in when[1] if option in parent]
        rows[~np.isin(rows[:, names.index(when[0])], active), names.index(name)] = INACTIVE
        settled.add(name)

    for name in names:
        settle(name)
    return rows
