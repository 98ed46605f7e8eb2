"""Numeric series as arrays: CSV files, and two synthetic series. ``read_csv(Path("power.csv"))`` returns a ``Table``.

Numpy only: a device reads series with the code that training used.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hnas.files import read_plain

Floats = NDArray[np.float32]
Values = NDArray[np.float32] | NDArray[np.float64]
Scaling = Mapping[str, tuple[float, float]]  # column -> (mean, deviation)

_LARGEST = 2**28  # bytes of a CSV file
_WIDEST = 1024  # columns
_EVEN = 1e-3  # largest relative difference between two time steps of a regular series; months differ by more
_MONTH = (27.9, 31.1)  # days


@dataclass(frozen=True)
class Table:
    """Rows of numbers in time order.

    columns: the names of the columns.
    values: [rows, columns], finite; float64 from a file, because a meter at 12345678.9 would stand still in the seven
        digits of float32.
    """

    columns: tuple[str, ...]
    values: Values

    @property
    def digest(self) -> str:
        """Return the sha256 of names and values."""
        found = hashlib.sha256(repr((self.columns, self.values.shape)).encode())
        found.update(np.ascontiguousarray(self.values, np.float64).tobytes())
        return found.hexdigest()

    def take(self, columns: Sequence[str]) -> Values:
        """Return the values [rows, len(columns)]. Raise ValueError for an unknown column."""
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
    begin = lines[0].cells[0].strip()
    stamps = time or (head[0] if begin and not _is_number(begin) else "")
    if stamps:
        _check_even(file, stamps, [(line.number, line.cells[head.index(stamps)].strip()) for line in lines])
    kept = [index for index, name in enumerate(head) if name != stamps]
    if not kept:
        raise ValueError(f"{file} has one column, {stamps!r}, of timestamps; a series needs a column of numbers")
    cells = (_cell(file, line.number, head[k], line.cells[k]) for line in lines for k in kept)
    return Table(tuple(head[k] for k in kept), np.fromiter(cells, np.float64).reshape(len(lines), len(kept)))


class _Line(NamedTuple):
    """A row of a CSV file, and the number of its line."""

    number: int
    cells: list[str]


def _lines(file: Path) -> tuple[list[str], list[_Line]]:
    """Return the names of the columns and the rows of cells. Raise ValueError unless the file is a table."""
    if not file.exists():
        raise FileNotFoundError(f"no series {file}; give a CSV file with a header line")
    try:
        text = read_plain(file, _LARGEST).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no UTF-8 text: {error}") from None
    reader = csv.reader(StringIO(text, newline=None), strict=True)
    try:
        lines = [_Line(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as error:
        raise ValueError(f"{file}: line {reader.line_num} is no CSV: {error}") from None
    if len(lines) < 2:
        raise ValueError(f"{file} has {len(lines)} lines; a series has a header line and rows of numbers")
    head = [name.strip() for name in lines[0].cells]
    _check_head(f"{file}: line {lines[0].number}", head)
    for number, cells in lines:
        if len(cells) != len(head):
            raise ValueError(f"{file}: line {number} has {len(cells)} cells, the header line has {len(head)}")
    return head, lines[1:]


def _check_head(where: str, head: Sequence[str]) -> None:
    """Raise ValueError unless ``head`` names the columns."""
    if len(head) == 1 and (other := next((mark for mark in ";\t|" if mark in head[0]), "")):
        raise ValueError(f"{where} separates columns by {other!r}; separate them by commas, and write decimal points")
    if len(head) > _WIDEST or len(set(head)) < len(head) or not all(head):
        found = ", ".join(repr(name) for name in head[:8])
        raise ValueError(f"{where} names the columns, each once and at most {_WIDEST}; got {found}")
    counted = [str(k) for k in range(len(head))]  # the names that pandas gives
    if head != counted and (_is_number(head[0]) or _is_time(head[0])) and all(map(_is_number, head[1:])):
        raise ValueError(f"{where} has the values {', '.join(head[:8])} in place of names; add a header line")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def _is_time(text: str) -> bool:
    try:
        _seconds(text)
    except ValueError:
        return False
    return True


def _seconds(text: str) -> float:
    """Return a timestamp in seconds. Raise ValueError if it is none.

    A time without a zone is read as UTC: in the zone of the machine an hourly series would have a gap in spring.
    """
    try:
        moment = None if _is_number(text) else datetime.fromisoformat(text)
        value = float(text) if moment is None else moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
    except (OverflowError, OSError) as error:
        raise ValueError(str(error)) from None
    if not math.isfinite(value):
        raise ValueError(f"{text} is no time")
    return value


def _cell(file: Path, number: int, column: str, text: str) -> float:
    """Return a cell as a number. Raise ValueError for a gap or a value that is not finite."""
    if not text.strip():
        raise ValueError(f"{file}: line {number} has a gap in column {column!r}; fill it, or cut the rows before it")
    if not _is_number(text) or not abs(float(text)) < 1e30:
        what = f"{text.strip()[:20]!r} in column {column!r}, which is no finite number"
        raise ValueError(f"{file}: line {number} has {what}; fill it, or leave the column out")
    return float(text)


def _check_even(file: Path, column: str, stamps: Sequence[tuple[int, str]]) -> None:
    """Raise ValueError unless the timestamps, each with the number of its line, rise by even steps (or by months)."""
    seconds = []
    for number, text in stamps:
        try:
            seconds.append(_seconds(text))
        except ValueError:
            what = f"{text[:30]!r} in column {column!r}, which is no timestamp and no finite number"
            raise ValueError(f"{file}: line {number} has {what}; write ISO 8601, or mend the number") from None
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
        (_, before), (number, text) = stamps[wrong[0] if wrong else 0 :][:2]
        what = f"{text[:30]!r} follows {before[:30]!r}, and most steps are {usual:g}"
        raise ValueError(
            f"{file}: line {number}: timestamps are irregular: {what}; resample the series, or fill the gap"
        )


# --- units ------------------------------------------------------------------------------------------------------------


def scaled(values: Values, names: Sequence[str], scaling: Scaling) -> Floats:
    """Return the columns ``names`` [rows, columns] minus their mean, divided by their deviation."""
    mean, deviation = _moments(names, scaling)
    return np.asarray((values - mean) / deviation, np.float32)


def unscaled(values: Floats, names: Sequence[str], scaling: Scaling) -> NDArray[np.float64]:
    """Return scaled columns [rows, columns] in their own units."""
    mean, deviation = _moments(names, scaling)
    return np.asarray(values * deviation + mean, np.float64)


def _moments(names: Sequence[str], scaling: Scaling) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows = np.asarray([scaling[name] for name in names], np.float64)
    return rows[:, 0], rows[:, 1]


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
