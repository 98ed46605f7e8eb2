"""Find the range of values of each activation that an int8 grid must cover, by five methods.

Use: ``activation_ranges(program, samples, "minmax")``. Memory use is constant for any number of samples, because only
running extremes and histograms are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from hnas.export.device.errors import ExportError
from hnas.export.graph.program import Program
from hnas.export.graph.samples import Samples, require_samples

Range = tuple[float, float]  # the lowest and the highest value
_Histogram = NDArray[np.float64]  # counts in BINS equal bins over a range

BINS = 2048
_COUNTED = 32  # samples that fill a histogram; each has thousands of values of a map, and more samples cost time
LEVELS = 256  # values of int8
_BEYOND = 1.3  # times the extremes: how far unseen samples are expected to go
_UNSEEN = 0.25  # their share
KEPT = 0.9999  # share of all values that "percentile" keeps


def activation_ranges(program: Program, samples: Samples, method: str = "minmax") -> dict[str, Range]:
    """Return the range to quantise each floating-point value of the graph to, by node name, inputs included.

    samples: inputs of the program; each sample is a tuple of arrays with the shapes and types of the inputs.
    method: one of these:

    1. minmax: the lowest and the highest value over all samples.
    2. percentile: 99.99 % of the values; equal shares are cut off at both ends (arXiv 2004.09602, 3.2).
    3. entropy: clipped at the threshold with the least Kullback-Leibler divergence of the quantised magnitudes
       (Migacz, 8-bit inference with TensorRT, GTC 2017).
    4. mse: the range whose 256 levels have the least squared error on the histogram (arXiv 1810.05723).
    5. unseen: as mse, on a mixture: three quarters are the values of the samples, a quarter is these values times 1.3,
       as samples of other things may have them. An end that two samples reach exactly is a bound, as of a ReLU6, and
       does not move.

    Methods 2 to 5 run up to 32 evenly chosen samples a second time for the histograms. Infinities (masks) are left out;
    a value that is infinite everywhere has the range (0, 0). Constants have no entry. A range is the observed one: a
    quantiser that must represent 0 widens it.

    Raises:
        ValueError: the method is unknown, or there are no samples.
        ExportError: a value is NaN.

    Example: ``activation_ranges(program, samples, "entropy")["conv2d"]`` returns ``(-1.9, 2.3)``.
    """
    if method not in METHODS:
        raise ValueError(f"no calibration method {method!r}; known: {', '.join(METHODS)}")
    samples = require_samples(samples)
    ends: dict[str, Range] = {}
    bounds: dict[str, tuple[bool, bool]] = {}  # whether two samples reach an end exactly

    def widen(name: str, value: Tensor) -> None:
        low, high = _extremes(name, value)
        seen = ends.get(name, (math.inf, -math.inf))
        ends[name] = (min(low, seen[0]), max(high, seen[1]))
        below, above = bounds.get(name, (False, False))
        bounds[name] = (low == seen[0] or (below and low > seen[0]), high == seen[1] or (above and high < seen[1]))

    observe(program, samples, widen)
    seen = {name: found if found[0] <= found[1] else (0.0, 0.0) for name, found in ends.items()}
    reduce = METHODS[method]
    if reduce is None:  # case 1
        return seen
    if reduce is _unseen:  # case 5
        seen = {name: _stretched(found, bounds[name]) for name, found in seen.items()}
    counts = {name: torch.zeros(BINS, dtype=torch.float64) for name, (low, high) in seen.items() if low < high}

    def count(name: str, value: Tensor) -> None:
        if name in counts:
            counts[name] += torch.histc(value.float(), BINS, *seen[name])

    observe(program, samples[:: -(-len(samples) // _COUNTED)], count)
    return {name: reduce(counts[name].numpy(), found) if name in counts else found for name, found in seen.items()}


def observe(program: Program, samples: Samples, see: Callable[[str, Tensor], None]) -> None:
    """Run the program on every sample. Call ``see(name, value)`` for each floating-point value except constants."""

    class Observed(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            value: object = super().run_node(n)
            if n.op in ("placeholder", "call_function") and isinstance(value, Tensor) and value.is_floating_point():
                see(n.name, value)
            return value

    interpreter = Observed(program.module)
    with torch.no_grad():
        for sample in samples:
            interpreter.run(*(torch.from_numpy(array) for array in sample))


def _extremes(name: str, value: Tensor) -> Range:
    """Return the finite extremes of a value, or (inf, -inf) if no element is finite. Raise ExportError for NaN."""
    if not value.numel():
        return math.inf, -math.inf
    low, high = (float(extreme) for extreme in torch.aminmax(value))
    if math.isfinite(low) and math.isfinite(high):
        return low, high
    if bool(torch.isnan(value).any()):
        raise ExportError(f"value {name} is NaN on a calibration sample; check the weights and that sample")
    finite = value[torch.isfinite(value)]
    return _extremes(name, finite)


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
