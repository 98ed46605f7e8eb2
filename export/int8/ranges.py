"""Reduce a histogram of values to the range that an int8 grid must cover: ``METHODS["mse"](counts, range)``.

This file imports no torch: `hnas.export.int8.calibration` and the converters of other graphs share it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

Range = tuple[float, float]  # the lowest and the highest value
_Histogram = NDArray[np.float64]  # counts in BINS equal bins over a range

BINS = 2048
COUNTED = 32  # samples that fill a histogram; each has thousands of values of a map, and more samples cost time
LEVELS = 256  # values of int8
_BEYOND = 1.3  # times the extremes: how far unseen samples are expected to go
_UNSEEN = 0.25  # their share
KEPT = 0.9999  # share of all values that "percentile" keeps


class Ends:
    """Collect the extremes of a value over samples, and which of them two samples reach exactly."""

    def __init__(self) -> None:
        self._low, self._high = math.inf, -math.inf
        self._below = self._above = False

    def widen(self, low: float, high: float) -> None:
        """Add the extremes of a sample."""
        self._below = low == self._low or (self._below and low > self._low)
        self._above = high == self._high or (self._above and high < self._high)
        self._low, self._high = min(low, self._low), max(high, self._high)

    def seen(self, method: str) -> Range:
        """Return the range of the histogram that ``METHODS[method]`` takes: of the samples, or wider in case 5."""
        if self._low > self._high:  # no finite value
            return 0.0, 0.0
        found = (self._low, self._high)
        return _stretched(found, (self._below, self._above)) if METHODS[method] is _unseen else found


def _percentile(counts: _Histogram, seen: Range) -> Range:
    """Case 2: cut off (1 - KEPT) / 2 of the values at each end; never divide a bin, such as the zeros of a ReLU."""
    shares = np.cumsum(counts) / counts.sum()
    tail = (1.0 - KEPT) / 2
    first = int(np.searchsorted(shares, tail, side="right"))
    last = int(np.searchsorted(shares, 1.0 - tail, side="left"))
    edges = np.linspace(*seen, BINS + 1)
    return float(edges[min(first, BINS - 1)]), float(edges[min(last, BINS - 1) + 1])


def _entropy(counts: _Histogram, seen: Range) -> Range:
    """Case 3: clip at the threshold of the least divergence; magnitudes have half the levels, as in the source."""
    top = max(abs(seen[0]), abs(seen[1]))
    centres = np.abs(_centres(seen))
    magnitudes, _ = np.histogram(centres, BINS, (0.0, top), weights=counts)
    magnitudes[0] = magnitudes[1]  # exact zeros are exact at any threshold, and would outweigh all other bins
    candidates = range(LEVELS // 2, BINS + 1, LEVELS // 16)
    best = min(candidates, key=lambda bins: _divergence(magnitudes, bins))
    threshold = top * best / BINS
    return max(seen[0], -threshold), min(seen[1], threshold)


def _divergence(magnitudes: _Histogram, bins: int) -> float:
    """Return the KL divergence between the first ``bins`` bins and their form with LEVELS / 2 levels.

    Values above these bins are clipped: the last bin counts them.
    """
    inside = magnitudes[:bins]
    wanted = inside.copy()
    wanted[-1] += magnitudes[bins:].sum()
    if not wanted.sum() or not inside.sum():
        return math.inf
    level = np.arange(bins) * (LEVELS // 2) // bins
    occupied = inside > 0
    sums = np.bincount(level, weights=inside, minlength=LEVELS // 2)
    sizes = np.bincount(level, weights=occupied, minlength=LEVELS // 2)
    spread = np.where(occupied, (sums / np.maximum(sizes, 1))[level], 0.0)
    p, q = wanted / wanted.sum(), spread / spread.sum()
    held = p > 0
    return float(np.sum(p[held] * np.log(p[held] / np.maximum(q[held], 1e-12))))


def _mse(counts: _Histogram, seen: Range) -> Range:
    """Case 4: minimise the squared error by shrinking the two ends alternately, each over a grid of 64 steps."""
    centres, (low, high) = _centres(seen), seen
    shrunk = np.linspace(1.0, 1 / 64, 64)
    for _ in range(2):
        if high > 0:
            high = _least(seen[1] * shrunk, partial(_error, centres, counts, low))
        if low < 0:
            low = _least(seen[0] * shrunk, partial(_error, centres, counts, high=high))
    return low, high


def _stretched(seen: Range, fixed: Sequence[bool]) -> Range:
    low, high = (end if bound else end * _BEYOND for end, bound in zip(seen, fixed, strict=True))
    return min(low, seen[0]), max(high, seen[1])


def _unseen(counts: _Histogram, seen: Range) -> Range:
    """Case 5: add the histogram, stretched until its outermost values reach the ends of ``seen``."""
    centres, used = _centres(seen), np.flatnonzero(counts)
    lowest, highest = centres[used[0]], centres[used[-1]]
    below, above = (
        float(np.clip(end / extreme, 1.0, _BEYOND)) if end * extreme > 0 else 1.0
        for end, extreme in zip(seen, (lowest, highest), strict=True)
    )
    moved, _ = np.histogram(np.where(centres < 0, centres * below, centres * above), BINS, seen, weights=counts)
    return _mse((1 - _UNSEEN) * counts + _UNSEEN * moved, seen)


def _least(ends: _Histogram, error: Callable[[float], float]) -> float:
    """Return the end with the least error. Stop at four times the least error, because more clipping is worse."""
    best, least = float(ends[0]), math.inf
    for end in map(float, ends):
        found = error(end)
        if found < least:
            best, least = end, found
        elif found > 4 * least:
            break
    return best


def _error(centres: _Histogram, counts: _Histogram, low: float, high: float) -> float:
    """Return the squared error of the histogram on LEVELS levels that cover ``low``, ``high`` and 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / (LEVELS - 1)
    rounded = np.clip(np.rint((centres - low) / step), 0, LEVELS - 1) * step + low
    return float(np.sum(counts * np.square(centres - rounded)))


def _centres(seen: Range) -> _Histogram:
    edges = np.linspace(*seen, BINS + 1)
    return (edges[1:] + edges[:-1]) / 2


METHODS: Mapping[str, Callable[[_Histogram, Range], Range] | None] = {
    "minmax": None,
    "percentile": _percentile,
    "entropy": _entropy,
    "mse": _mse,
    "unseen": _unseen,
}


def require_method(method: str) -> None:
    """Raise ValueError unless ``METHODS`` has the method."""
    if method not in METHODS:
        raise ValueError(f"no calibration method {method!r}; known: {', '.join(METHODS)}")
