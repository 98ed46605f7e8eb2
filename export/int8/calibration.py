"""Which values the activations of a program take: what an int8 grid has to cover, by four methods of the literature.

Nothing but running extremes and histograms is kept: a net of any size, on any number of samples, in constant memory.
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
from hnas.export.graph.samples import Arrays, require_samples

Range = tuple[float, float]  # the lowest and the highest value
_Histogram = NDArray[np.float64]  # counts of BINS equal bins over a range

BINS = 2048
_COUNTED = 32  # calls in a histogram: a map has thousands of values in each, and a search pays for them all
LEVELS = 256  # of int8
KEPT = 0.9999  # of all values: what "percentile" leaves inside


def activation_ranges(program: Program, data: Sequence[Arrays], method: str = "minmax") -> dict[str, Range]:
    """The range to quantise every floating point value of the graph to, by node name, inputs included.

    data: calls of the program, each a tuple of arrays of its inputs' shapes and types. Extremes are those of all calls;
    the other methods run up to COUNTED of them, evenly chosen, once more for the histograms.
    method:
    1. minmax: the lowest and the highest value over all samples.
    2. percentile: 99.99 % of the values, as much cut off below as above (arXiv 2004.09602, 3.2).
    3. entropy: no value farther from 0 than the threshold at which quantising the magnitudes loses the least
       information, in Kullback-Leibler divergence (Migacz, 8-bit inference with TensorRT, GTC 2017).
    4. mse: the range on whose 256 levels the histogram has the least squared error (arXiv 1810.05723).

    Infinities (masks) are left out; a value that is nothing else has the range (0, 0). Constants are no activations and
    have no entry. A range is as seen: a quantiser that has to represent 0 widens it.
    ValueError for an unknown method and samples that do not fit, ExportError for a value that is NaN.
    """
    if method not in METHODS:
        raise ValueError(f"no calibration method {method!r}; known: {', '.join(METHODS)}")
    calls = require_samples(data)
    ends: dict[str, Range] = {}

    def widen(name: str, value: Tensor) -> None:
        low, high = _extremes(name, value)
        seen = ends.get(name, (math.inf, -math.inf))
        ends[name] = (min(low, seen[0]), max(high, seen[1]))

    observe(program, calls, widen)
    seen = {name: found if found[0] <= found[1] else (0.0, 0.0) for name, found in ends.items()}
    reduce = METHODS[method]
    if reduce is None:
        return seen
    counts = {name: torch.zeros(BINS, dtype=torch.float64) for name, (low, high) in seen.items() if low < high}

    def count(name: str, value: Tensor) -> None:
        if name in counts:
            counts[name] += torch.histc(value.float(), BINS, *seen[name])

    observe(program, calls[:: -(-len(calls) // _COUNTED)], count)
    return {name: reduce(counts[name].numpy(), found) if name in counts else found for name, found in seen.items()}


def observe(program: Program, calls: Sequence[Arrays], see: Callable[[str, Tensor], None]) -> None:
    """Run the program on every call and show ``see`` each floating point value as it is made, constants left out."""

    class Observed(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            value: object = super().run_node(n)
            if n.op in ("placeholder", "call_function") and isinstance(value, Tensor) and value.is_floating_point():
                see(n.name, value)
            return value

    interpreter = Observed(program.module)
    with torch.no_grad():
        for call in calls:
            interpreter.run(*(torch.from_numpy(array) for array in call))


def _extremes(name: str, value: Tensor) -> Range:
    """The finite extremes of a value, (inf, -inf) where it has none; ExportError for NaN."""
    if not value.numel():
        return math.inf, -math.inf
    low, high = (float(extreme) for extreme in torch.aminmax(value))
    if math.isfinite(low) and math.isfinite(high):
        return low, high
    if bool(torch.isnan(value).any()):
        raise ExportError(f"value {name} is NaN on a calibration sample; look at its weights and that input")
    finite = value[torch.isfinite(value)]
    return _extremes(name, finite)


def _percentile(counts: _Histogram, seen: Range) -> Range:
    """The range without (1 - KEPT) / 2 of the values at either end; a pile of equal values, as of ReLU, stays whole."""
    shares = np.cumsum(counts) / counts.sum()
    tail = (1.0 - KEPT) / 2
    first = int(np.searchsorted(shares, tail, side="right"))
    last = int(np.searchsorted(shares, 1.0 - tail, side="left"))
    edges = np.linspace(*seen, BINS + 1)
    return float(edges[min(first, BINS - 1)]), float(edges[min(last, BINS - 1) + 1])


def _entropy(counts: _Histogram, seen: Range) -> Range:
    """The range clipped to the threshold of the least divergence; magnitudes have half the levels, as in the source."""
    top = max(abs(seen[0]), abs(seen[1]))
    centres = np.abs(_centres(seen))
    magnitudes, _ = np.histogram(centres, BINS, (0.0, top), weights=counts)
    magnitudes[0] = magnitudes[1]  # exact zeros quantise to themselves at any threshold and would drown the rest
    candidates = range(LEVELS // 2, BINS + 1, LEVELS // 16)
    best = min(candidates, key=lambda bins: _divergence(magnitudes, bins))
    threshold = top * best / BINS
    return max(seen[0], -threshold), min(seen[1], threshold)


def _divergence(magnitudes: _Histogram, bins: int) -> float:
    """KL divergence of the first ``bins``, clipped values added to the last, from their LEVELS / 2 level form."""
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
    """The range of the least squared error: its two ends are shrunk in turns, each over a grid of 64 steps."""
    centres, (low, high) = _centres(seen), seen
    shrunk = np.linspace(1.0, 1 / 64, 64)
    for _ in range(2):
        if high > 0:
            high = _least(seen[1] * shrunk, partial(_error, centres, counts, low))
        if low < 0:
            low = _least(seen[0] * shrunk, partial(_error, centres, counts, high=high))
    return low, high


def _least(ends: _Histogram, error: Callable[[float], float]) -> float:
    """The end of the least error; those behind one of four times that are not tried: clipping only gets worse."""
    best, least = float(ends[0]), math.inf
    for end in map(float, ends):
        found = error(end)
        if found < least:
            best, least = end, found
        elif found > 4 * least:
            break
    return best


def _error(centres: _Histogram, counts: _Histogram, low: float, high: float) -> float:
    """Squared error of the histogram on LEVELS levels that cover ``low``, ``high`` and 0."""
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
}
