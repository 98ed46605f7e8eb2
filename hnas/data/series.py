"""Numeric series as arrays: CSV files, and two synthetic series. ``read_csv(Path("power.csv"))`` returns a ``Table``.

Numpy only: a device reads series with the code that training used.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from io import StringIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hnas.files import read_plain

Floats = NDArray[np.float32]

_LARGEST = 2**28  # bytes of a CSV file
_WIDEST = 1024  # columns
_EVEN = 1e-3  # largest relative difference between two time steps of a regular series; months differ by more
_MONTH = (27.9, 31.1)  # days


@dataclass(frozen=True)
class Table:
    """Rows of numbers in time order.

    columns: the names of the columns.
    values: float32 [rows, columns], finite.
    """

    columns: tuple[str, ...]
    values: Floats

    @property
    def digest(self) -> str:
        """Return the sha256 of names and values."""
        found = hashlib.sha256(repr((self.columns, self.values.shape)).encode())
        found.update(np.ascontiguousarray(self.values).tobytes())
        return found.hexdigest()

    def take(self, columns: Sequence[str]) -> Floats:
        """Return float32 [rows, len(columns)]. Raise ValueError for an unknown column."""
        for name in columns:
            if name not in self.columns:
                raise ValueError(f"no column {name!r}; known: {', '.join(self.columns[:12])}")
        return self.values[:, [self.columns.index(name) for name in columns]]


def read_csv(file: Path, time: str = "") -> Table:
    """Return the numeric columns of a CSV file with a header line.

    time: the name of the column of timestamps (ISO 8601, or numbers); it is checked and left out. Empty (default): the
        first column, if it holds timestamps that are no numbers; otherwise there is none.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is no table, a cell is empty or no finite number, or the timestamps are not evenly spaced.
            The message names line and column.
    """
    head, lines = _lines(file)
    if time and time not in head:
        raise ValueError(f"{file}: no column {time!r} of timestamps; known: {', '.join(head[:12])}")
    stamps = time or (head[0] if not _is_number(lines[0][0]) and lines[0][0].strip() else "")
    if stamps:
        _check_even(file, stamps, [line[head.index(stamps)].strip() for line in lines])
    kept = [index for index, name in enumerate(head) if name != stamps]
    if not kept:
        raise ValueError(f"{file} has one column, {stamps!r}, of timestamps; a series needs a column of numbers")
    rows = [[_cell(file, number, head[k], line[k]) for k in kept] for number, line in enumerate(lines, 2)]
    return Table(tuple(head[k] for k in kept), np.asarray(rows, np.float32))


def _lines(file: Path) -> tuple[list[str], list[list[str]]]:
    """Return the names of the columns and the rows of cells. Raise ValueError unless the file is a table."""
    if not file.exists():
        raise FileNotFoundError(f"no series {file}; give a CSV file with a header line")
    try:
        text = read_plain(file, _LARGEST).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no UTF-8 text: {error}") from None
    try:
        lines = [line for line in csv.reader(StringIO(text), strict=True) if line]
    except csv.Error as error:
        raise ValueError(f"{file} is no CSV file: {error}") from None
    if len(lines) < 2:
        raise ValueError(f"{file} has {len(lines)} lines; a series has a header line and rows of numbers")
    head = [name.strip() for name in lines[0]]
    if len(head) > _WIDEST or len(set(head)) < len(head) or not all(head):
        raise ValueError(
            f"{file}: line 1 names the columns, each once and at most {_WIDEST}; got {', '.join(head[:8])}"
        )
    for number, line in enumerate(lines, 1):
        if len(line) != len(head):
            raise ValueError(f"{file}: line {number} has {len(line)} cells, line 1 has {len(head)}")
    return head, lines[1:]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _cell(file: Path, number: int, column: str, text: str) -> float:
    """Return a cell as a number. Raise ValueError for a gap or a value that is not finite."""
    if not text.strip():
        raise ValueError(f"{file}: line {number} has a gap in column {column!r}; fill it, or cut the rows before it")
    if not _is_number(text) or not abs(float(text)) < 1e30:
        what = f"{text.strip()[:20]!r} in column {column!r}, which is no finite number"
        raise ValueError(f"{file}: line {number} has {what}; fill it, or leave the column out")
    return float(text)


def _check_even(file: Path, column: str, stamps: Sequence[str]) -> None:
    """Raise ValueError unless the timestamps rise by even steps (or by months)."""
    seconds = []
    for number, text in enumerate(stamps, 2):
        try:
            value = float(text) if _is_number(text) else datetime.fromisoformat(text).timestamp()
        except (ValueError, OverflowError, OSError):
            raise ValueError(
                f"{file}: line {number} has the timestamp {text[:30]!r} in column {column!r}; write ISO 8601"
            ) from None
        seconds.append(value)
    steps = np.diff(seconds)
    if not len(steps):
        return
    usual = float(np.median(steps))
    monthly = _MONTH[0] <= usual / 86400 <= _MONTH[1]
    low, high = (86400 * day for day in _MONTH) if monthly else (usual * (1 - _EVEN), usual * (1 + _EVEN))
    # Local times have days of 23 and 25 hours; such a step is even.
    wrong = [
        k for k, step in enumerate(steps) if not (low <= step <= high or (usual == 86400 and abs(step - usual) <= 3601))
    ]
    if usual <= 0 or wrong:
        k = wrong[0] if wrong else 0
        what = f"{stamps[k + 1][:30]!r} follows {stamps[k][:30]!r}, and most steps are {usual:g}"
        raise ValueError(
            f"{file}: line {k + 3}: timestamps are irregular: {what}; resample the series, or fill the gap"
        )


# --- synthetic series -------------------------------------------------------------------------------------------------


def lorenz(length: int, seed: int = 0) -> Table:
    """Return the Lorenz system (sigma 10, rho 28, beta 8/3), a row every 0.05 time units, after a transient.

    E. N. Lorenz, Deterministic nonperiodic flow, 1963. Integrated by Runge-Kutta of order 4 with steps of 0.01.
    """
    state = np.random.default_rng([seed, 10]).normal(0.0, 1.0, 3) + np.array([0.0, 0.0, 25.0])

    def flow(s: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y, z = s
        return np.array([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z])

    rows, h = [], 0.01
    for step in range(5 * (length + 100)):
        a = flow(state)
        b = flow(state + h / 2 * a)
        c = flow(state + h / 2 * b)
        state = state + h / 6 * (a + 2 * b + 2 * c + flow(state + h * c))
        if step >= 500 and step % 5 == 0:
            rows.append(state)
    return Table(("x", "y", "z"), np.asarray(rows, np.float32))


def gated_recall(length: int, seed: int = 0) -> Table:
    """Return a series whose target is a product: target[t] = signal[t - 2] * gate[t], signal and gate in [-1, 1].

    A network that only adds its states must imitate the product; a network that multiplies two states has it.
    """
    signal, gate = np.random.default_rng([seed, 11]).uniform(-1.0, 1.0, (2, length))
    target = np.concatenate([np.zeros(2), signal[:-2]]) * gate
    return Table(("signal", "gate", "target"), np.stack([signal, gate, target], 1).astype(np.float32))


SYNTHETIC: dict[str, Callable[[int, int], Table]] = {"lorenz": lorenz, "gated_recall": gated_recall}


# --- simple forecasts -------------------------------------------------------------------------------------------------


def season_of(values: Floats, longest: int) -> int:
    """Return the lag from 2 to ``longest`` at which a series [rows, columns] correlates best with itself.

    The slow trend would favour the shortest lag, so differences of successive rows are correlated.
    """
    steps = np.diff(values.astype(np.float64), axis=0)
    steps = steps - steps.mean(0)
    longest = min(longest, len(steps) // 2)
    best = max(range(2, longest + 1), key=lambda lag: float((steps[lag:] * steps[:-lag]).mean()), default=1)
    return best if math.isfinite(float(steps.sum())) else 1
