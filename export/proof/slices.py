"""Find the slice of an output that an artifact computes worst. ``worst_slice(name, want, have)``; needs numpy only.

A slice is one index of one axis of an output, over all samples: a channel, a class, a row of boxes or scores. The SQNR
of the whole output does not show a small slice that is lost beside larger ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float64]
_Flags = NDArray[np.bool_]

LARGEST_DB = 200.0  # equal values; JSON has no infinity
_VALUES = 3.5  # effective number of values that a slice must have; 14 normal ones have as many
_CONSTANT = 1e-3  # a slice whose deviation is a smaller share of its size is constant
_VARYING = 0.2  # a slice whose deviation is a larger share of its size is judged on its deviation
_OUTLYING = 4.0  # times the common error, from which a slice has an error of its own
_OUTLYING_OFFSET = 6.0  # the same for an error that may be equal in all samples: one draw and no mean
_CHANCE = 0.05  # share of slices that may be small by chance: sums whose terms cancel
_DIMENSIONS = 64  # of a numpy array, at most
_NORMAL = 4.0  # values of a normal distribution that count as one effective value
_MOSTLY = 0.75  # share of slices that vary, from which no mean is near zero by chance
_UNLIKE = 32.0  # ratio of sizes; slices of one kind differ by less, also by chance
_CERTAINTY = 3.5  # standard deviations; there are up to a thousand slices
_BLOCK = 2**18  # values in memory at once, as far as rows allow


@dataclass(frozen=True)
class OutputSlice:
    """Name one slice of an output, and hold its SQNR.

    output: the name of the output.
    axis, index: the place of the slice; None for the whole output.
    sqnr_db: the SQNR of the slice in dB, between -200 and 200.
    """

    output: str
    axis: int | None
    index: int | None
    sqnr_db: float

    def __post_init__(self) -> None:
        """Raise ValueError for a place that no output has."""
        if not 0 <= (self.axis or 0) < _DIMENSIONS or (self.index or 0) < 0:
            raise ValueError(f"worst is at axis {self.axis}, index {self.index}, expected a place in an output")

    def __str__(self) -> str:
        """Return the slice as an index in Python, such as ``scores[:, 7]``."""
        name = "".join(each if each.isprintable() else "?" for each in self.output[:80])
        return name if self.axis is None else f"{name}[{':, ' * self.axis}{self.index}]"


def worst_slice(
    name: str, want: Sequence[NDArray[Any]], have: Sequence[NDArray[Any]], steps: int = 0, floor_db: float = -np.inf
) -> OutputSlice | None:
    """Return the slice with the lowest SQNR of the slices that carry information and are judged by themselves.

    1. A slice carries information if its deviation is above 0.1 % of its size, and if it has 3.5 effective values or
       more (see `_Moments`). Constants, slices of few samples, and channels that are nearly all zero carry none.
    2. The SQNR of a slice is the smaller of two: mean square of the values by that of the errors, and variance of the
       values by that of the errors. The second is left out for a slice that varies by less than a fifth of its size.
    3. A slice has an error of its own if its error has 3.5 effective values or more, and is above four times the common
       error. For mean squares the factor is six. The common error is the median over all slices, or the geometric mean
       over the slices that are at least as large, if that is smaller.
    4. An integer type has ``steps`` steps for the whole output: a slice smaller than one step has its own error too. In
       an output that hardly varies a few slices are small by chance. So one slice, or 5 %, is left out there.
    5. A slice of another kind, with at most 1/32 of the size of the largest slice, is judged if its SQNR is certainly
       below ``floor_db``, also where all slices have the same error. It must vary, as must three quarters of all.
       Certainly means by 3.5 standard deviations of the estimate.
    6. All other slices share the noise of the whole output, which counts as a slice.

    want, have: the output of the module and of the artifact for each sample, finite at the same places.
    steps: number of steps of an integer type; 0 for floats, whose error is relative.
    floor_db: the SQNR below which a slice is lost whatever its noise comes from; default: none.
    """
    lowest = min(float(np.nanmin(each, initial=0.0, where=np.isfinite(each))) for each in want)
    highest = max(float(np.nanmax(each, initial=0.0, where=np.isfinite(each))) for each in want)
    step = (highest - lowest) / steps if steps else 0.0
    found: list[OutputSlice] = []
    for axis, moments in _moments(want, have).items():
        level, judged = moments.judge(step, floor_db)
        if judged.any():
            index = int(np.where(judged, level, np.inf).argmin())
            found.append(OutputSlice(name, axis, None if axis is None else index, float(level[index])))
    return min(found, key=lambda each: each.sqnr_db, default=None)


@dataclass(frozen=True)
class _Moments:
    """Hold statistics of all slices of one axis: arrays with one value for each slice.

    power, variance: mean square of the values, and their variance.
    noise, spread: mean square of the errors, and their variance.
    values: effective number of values: by how many values of the largest deviation the variance could be made.
    errors: the same of the errors.
    """

    power: _Floats
    variance: _Floats
    noise: _Floats
    spread: _Floats
    values: _Floats
    errors: _Floats

    def judge(self, step: float, floor_db: float) -> tuple[_Floats, _Flags]:
        """Return the SQNR of each slice in dB, and which slices are judged."""
        informed = (self.values >= _VALUES) & (self.variance > _CONSTANT**2 * self.power)  # case 1
        varying = informed & (self.variance > _VARYING**2 * self.power)
        usual = varying.mean() > 0.5
        chance = 0.0 if usual else max(1.0, _CHANCE * informed.sum())
        level, judged = np.full(len(informed), LARGEST_DB), np.zeros(len(informed), bool)
        for signal, noise, counted, factor in (  # case 2
            (self.power, self.noise, informed, _OUTLYING_OFFSET),
            (self.variance, self.spread, varying, _OUTLYING),
        ):
            outlying = _outlying(np.sqrt(signal), np.sqrt(noise), factor)  # case 3
            outlying &= (self.errors >= _VALUES) | (len(level) == 1)
            small = counted & (np.sqrt(signal if usual else self.power) < step)  # case 4
            own = counted & outlying | small & (small.sum() > chance)
            if varying.mean() > _MOSTLY:  # case 5
                unlike = varying & (signal <= signal.max() / _UNLIKE**2)
                own |= unlike & (_decibels(signal, noise) + self._doubt_db() < floor_db)
            level = np.where(own, np.minimum(level, _decibels(signal, noise)), level)
            judged |= own
        return level, judged

    def _doubt_db(self) -> _Floats:
        """Return how far the SQNR of each slice may lie above its estimate, in dB.

        The logarithm of a mean square of n normal values has a variance of about 2/n; here are two of them.
        """
        counts = (_NORMAL * np.maximum(each, 1e-3) for each in (self.values, self.errors))
        found: _Floats = _CERTAINTY * 10 / np.log(10) * np.sqrt(sum(2 / count for count in counts))
        return found


def _decibels(signal: _Floats, noise: _Floats) -> _Floats:
    """Return ratios in dB, between -200 and 200; 200 without noise."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(noise > 0, 10.0 * np.log10(signal / noise), LARGEST_DB)
    return np.clip(found, -LARGEST_DB, LARGEST_DB)


def _outlying(size: _Floats, error: _Floats, factor: float) -> _Flags:
    """Return which slices have ``factor`` times the common error. A single slice has an error of its own."""
    if len(size) == 1:
        return np.ones(1, bool)
    order = np.argsort(-size, kind="stable")
    larger = np.empty_like(error)
    larger[order] = np.exp(np.cumsum(np.log(np.maximum(error[order], 1e-300))) / np.arange(1, len(error) + 1))
    return np.asarray(error > factor * np.minimum(larger, np.median(error)))


def _moments(want: Sequence[NDArray[Any]], have: Sequence[NDArray[Any]]) -> dict[int | None, _Moments]:
    """Return the statistics of the whole output (None), and of every axis with several indices."""
    sums: dict[int | None, _Floats] = {axis: np.zeros((8, size)) for axis, size in _axes(want).items()}
    for total in sums.values():
        total[5:7] = -np.inf
    for rows, value, error in _blocks(want, have):
        parts = (value, value * value, error, error * error)
        for axis, total in sums.items():
            others = tuple(each for each in range(value.ndim) if each != axis)
            into = total[:, rows] if axis == 0 else total
            into[0] += value.size / into.shape[1]
            for each, part in zip(into[1:5], parts, strict=True):
                each += part.sum(axis=others)
            np.maximum(into[5], value.max(axis=others), out=into[5])
            np.maximum(into[6], -value.min(axis=others), out=into[6])
            np.maximum(into[7], parts[3].max(axis=others), out=into[7])
    found = {}
    for axis, (count, *totals, highest, lowest, worst) in sums.items():
        mean, power, bias, noise = (total / np.maximum(count, 1.0) for total in totals)
        variance, spread = np.maximum(power - mean**2, 0.0), np.maximum(noise - bias**2, 0.0)
        farthest = np.square(np.maximum(np.maximum(highest - mean, lowest + mean), 1e-150))
        values, errors = count * variance / farthest, count * noise / np.maximum(worst, 1e-300)
        found[axis] = _Moments(power, variance, noise, spread, values, errors)
    return found


def _axes(want: Sequence[NDArray[Any]]) -> dict[int | None, int]:
    """Return the axes whose number of indices is the same in all samples, and more than one; None: the whole output."""
    shapes = {sample.shape for sample in want}
    sizes = {axis: set(found) for axis, found in enumerate(zip(*shapes, strict=True))}
    return {None: 1} | {axis: size for axis, (size, *more) in sizes.items() if size > 1 and not more}


def _blocks(want: Sequence[NDArray[Any]], have: Sequence[NDArray[Any]]) -> Iterator[tuple[slice, _Floats, _Floats]]:
    """Yield values and errors of a few rows at a time, with the rows; values that are not finite are 0 in both."""
    for a, b in zip(map(np.atleast_1d, want), map(np.atleast_1d, have), strict=True):
        count = max(1, _BLOCK * len(a) // max(1, a.size))
        for start in range(0, len(a), count):
            rows = slice(start, min(start + count, len(a)))
            value, error = a[rows].astype(np.float64), b[rows].astype(np.float64)
            if not np.isfinite(value).all():
                kept = np.isfinite(value)
                value, error = np.where(kept, value, 0.0), np.where(kept, error, 0.0)
            error -= value
            if value.size:
                yield rows, value, error
