"""Find values with parts that one int8 scale would destroy: ``find_unlike(network, samples)``.

Boxes in pixels beside scores in [0, 1] are an example: a step of 2.5 pixels leaves no score. The search reads any graph
that has the interface `Network`, such as a captured program or an ONNX file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from hnas.export.device.records import JSON
from hnas.export.graph.samples import Sample, Samples

__all__ = ("Array", "Call", "Edit", "Kind", "Network", "Part", "Unlike", "find_unlike")

Array = NDArray[Any]
Edit = Callable[[Array], Array]
# What computes a value: a layer with weights, a concatenation, a slice, an input of the graph, another operator.
Kind = Literal["layer", "join", "part", "input", "other"]

CLEAR_DB = 20.0  # a part is destroyed below this SQNR, which is about 50 times less than an int8 value has
_GAIN_DB = 6.0  # least gain of one scale for each part
_UNLIKE = 16  # least ratio of the ranges of a value and of a slice that needs its own scale
_ALIKE = 4  # greatest ratio of the ranges of parts that share a scale in any case
_LEVELS = 255  # steps of int8
_SAMPLES = 12  # evenly chosen samples
_MOST = 16  # tested values, the worst first
_VARYING = 0.2  # a slice hardly varies if its deviation is a smaller part of its size
_RARE = 0.05  # a slice is no chance if fewer slices of its size are expected
_CONSTANT = 1e-5  # a part is constant if its deviation is below this part of its magnitude


@dataclass(frozen=True)
class Call:
    """Describe the operator that computes a value.

    sources: the values that it reads, without constants.
    sizes: sizes of the joined parts along ``axis``; empty unless the kind is "join".
    axis: of a join, or the channels of a layer; None for any other kind.
    """

    kind: Kind
    sources: tuple[str, ...]
    sizes: tuple[int, ...] = ()
    axis: int | None = None


class Network(Protocol):
    """Describe a graph that can be searched."""

    @property
    def calls(self) -> Mapping[str, Call]:
        """Return the call of each floating-point value, by the name of the value, in graph order."""

    @property
    def outputs(self) -> Sequence[str]:
        """Return the names of the outputs; a name that ``calls`` lacks is not floating-point."""

    def observe(self, samples: Samples, names: Collection[str], see: Callable[[str, Array], None]) -> None:
        """Call ``see(name, value)`` for each named value and each sample."""

    def replay(self, sample: Sample, edits: Sequence[tuple[str, Edit]]) -> list[tuple[Array, ...]]:
        """Return the outputs for ``sample``: first unedited, then with each edit of one named value."""


@dataclass(frozen=True)
class Part:
    """Describe slices of a value with similar ranges: from ``start`` to ``end`` along an axis."""

    start: int
    end: int
    low: float
    high: float


@dataclass(frozen=True)
class Unlike:
    """Describe a value that needs one scale for each part.

    parts: neighbouring slices along ``axis``.
    clear: whether int8 represents every slice well with these scales.
    at_end: whether no layer is between the value and an output.
    worst_db: SQNR of the worst slice of the outputs if the value has a single scale.
    """

    name: str
    axis: int
    parts: tuple[Part, ...]
    clear: bool
    at_end: bool
    worst_db: float

    @property
    def differs(self) -> bool:
        """Return whether the ranges of the parts differ by a factor of 16 or more."""
        ranges = [part.high - part.low for part in self.parts if part.high > part.low]
        return bool(ranges) and max(ranges) >= _UNLIKE * min(ranges)

    def to_json(self, how: str) -> dict[str, JSON]:
        """Return the record for an artifact's notes. ``how``: what was done."""
        ranges: list[JSON] = [[float(f"{part.low:.4g}"), float(f"{part.high:.4g}")] for part in self.parts[:8]]
        return {"value": self.name, "axis": self.axis, "ranges": ranges, "db": round(self.worst_db, 1), "how": how}


def find_unlike(network: Network, samples: Samples, *, at_ends: bool = True) -> list[Unlike]:
    """Return the values that need one scale for each part, in graph order.

    A single scale destroys a slice of a value, along any axis, if the range of the slice is at most 1/16 of the whole
    and its SQNR falls below 20 dB. The signal is the variance of the slice, so constant slices never count. Candidates
    are values with a destroyed slice:

    1. After the last layers, up to the outputs.
    2. Concatenations and inputs inside the network, and the values after them up to the next layer.
    3. Values that are sliced afterwards.

    Other values inside the network are left out: `hnas.export.int8.equalisation` rescales their channels. A candidate
    is returned only if quantising it alone destroys a slice of an output, and separate scales raise it by 6 dB.

    at_ends: False for a backend that quantises only what layers and sums read.
    """
    samples = samples[:: -(-len(samples) // _SAMPLES)]
    ends = _ends(network)
    places = _places(network, ends, at_ends=at_ends)
    known: dict[str, _Spread] = {}

    def see(name: str, value: Array) -> None:
        known.setdefault(name, _Spread(value.shape)).add(value)

    if not places:
        return []
    network.observe(samples, places, see)
    levels = {name: spread.worst()[1] for name, spread in known.items()}
    chosen = sorted((name for name in levels if levels[name] < CLEAR_DB), key=lambda name: levels[name])[:_MOST]
    divided = [
        _divided(name, network.calls[name], known[name], name in ends) for name in network.calls if name in chosen
    ]
    return _confirmed(network, samples, [each for each in divided if each.differs])


def _ends(network: Network) -> set[str]:
    """Return the values of case 1."""
    calls = network.calls
    ends, left = set[str](), [name for name in network.outputs if name in calls]
    while left:
        name = left.pop()
        if name not in ends:
            ends.add(name)
            left += () if calls[name].kind == "layer" else calls[name].sources
    return ends


def _places(network: Network, ends: set[str], *, at_ends: bool) -> set[str]:
    """Return the values of cases 1, 2 and 3."""
    calls = network.calls
    readers: dict[str, list[str]] = {name: [] for name in calls}
    for name, call in calls.items():
        for source in call.sources:
            readers[source].append(name)
    plain = {name for name, call in calls.items() if call.kind in ("other", "part") and len(call.sources) == 1}
    found = ends | _joined(calls, plain) | _sliced(calls, readers, plain)
    computing = {name for name, call in calls.items() if call.kind in ("layer", "part") or len(call.sources) > 1}
    return {name for name in found if at_ends or computing & set(readers[name])}


def _joined(calls: Mapping[str, Call], plain: set[str]) -> set[str]:
    """Return the values of case 2. ``plain``: values that are computed from one other value."""
    inner = set[str]()
    for name, call in calls.items():
        if call.kind in ("join", "input") or (name in plain and call.sources[0] in inner):
            inner.add(name)
    return inner


def _sliced(calls: Mapping[str, Call], readers: Mapping[str, list[str]], plain: set[str]) -> set[str]:
    """Return the values of case 3. ``plain``: values that are computed from one other value."""
    sliced = set[str]()
    for name in reversed(list(calls)):
        if any(calls[each].kind == "part" or each in plain & sliced for each in readers[name]):
            sliced.add(name)
    return sliced


class _Spread:
    """Collect range and variance of every slice of a value, along every axis, over samples."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._axes = [axis for axis, size in enumerate(shape) if size > 1]
        self._count = 0
        self._size = math.prod(shape)
        self._shape = shape
        self._low = {axis: np.full(shape[axis], np.inf) for axis in self._axes}
        self._high = {axis: np.full(shape[axis], -np.inf) for axis in self._axes}
        self._sums = {axis: np.zeros((2, shape[axis])) for axis in self._axes}

    def add(self, value: Array) -> None:
        """Add the value of one sample. Infinities, as in a mask, count as 0."""
        self._count += 1
        value = np.where(np.isfinite(value), value, 0)
        for axis in self._axes:
            others = tuple(each for each in range(value.ndim) if each != axis)
            self._low[axis] = np.minimum(self._low[axis], value.min(others))
            self._high[axis] = np.maximum(self._high[axis], value.max(others))
            self._sums[axis] += value.sum(others, np.float64), np.square(value, dtype=np.float64).sum(others)

    def levels(self, axis: int, steps: Array | float) -> Array:
        """Return the SQNR in dB of each slice along ``axis`` under a step; infinite for a constant slice."""
        mean, square = self.moments(axis)
        variance = square - np.square(mean)
        moving = variance > square * _CONSTANT**2
        noise = np.square(np.maximum(steps, 1e-150)) / 12
        return np.where(moving, 10 * np.log10(np.where(moving, variance, 1.0) / noise), np.inf)

    def moments(self, axis: int) -> Array:
        """Return the mean and the mean square of each slice along ``axis``."""
        found: Array = self._sums[axis] * self._shape[axis] / (self._count * self._size)
        return found

    def worst(self, axes: Collection[int] | None = None) -> tuple[int, float]:
        """Return the axis of the worst slice of small range under a single scale, and its SQNR in dB.

        axes: the axes to search; None for all.
        """
        found = {axis: self._small(axis) for axis in self._axes if axes is None or axis in axes}
        axis = min(found, key=lambda each: found[each], default=0)
        return axis, found.get(axis, math.inf)

    def _small(self, axis: int) -> float:
        low, high = np.minimum(self._low[axis], 0), np.maximum(self._high[axis], 0)
        whole = float(high.max() - low.min())
        found = self.levels(axis, whole / _LEVELS)
        return float(np.where(high - low <= whole / _UNLIKE, found, np.inf).min())

    def parts(self, axis: int, sizes: Sequence[int]) -> tuple[tuple[Part, ...], bool]:
        """Return the fewest runs of neighbours that can share a scale, and whether all slices are clear with them.

        sizes: sizes of the neighbours, which are never divided.
        """
        low, high = np.minimum(self._low[axis], 0), np.maximum(self._high[axis], 0)
        bounds = np.cumsum([0, *sizes])
        found: list[Part] = []
        for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            last = found.pop() if found else Part(start, start, 0.0, 0.0)
            own = Part(start, end, float(low[start:end].min()), float(high[start:end].max()))
            both = Part(last.start, end, min(last.low, own.low), max(last.high, own.high))
            shares = self._shares(axis, own, both) and self._shares(axis, last, both)
            found += [both] if shares else [last, own]
        worst = min(float(self._slices(axis, part, part).min()) for part in found)
        return tuple(found), worst >= CLEAR_DB

    def _shares(self, axis: int, own: Part, both: Part) -> bool:
        """Return whether a part has the range of both: all slices are clear, or its own scale gains little."""
        similar = both.high - both.low <= _ALIKE * (own.high - own.low)
        return own.start == own.end or similar or bool(self._slices(axis, own, both).min() >= CLEAR_DB)

    def _slices(self, axis: int, own: Part, scale: Part) -> Array:
        found: Array = self.levels(axis, (scale.high - scale.low) / _LEVELS)[own.start : own.end]
        return found


def _divided(name: str, call: Call, spread: _Spread, at_end: bool) -> Unlike:
    """Return a candidate, divided along the channels or the joined axis if they are unlike."""
    axis, worst = spread.worst()
    sizes = [1] * spread._shape[axis]
    if call.axis is not None and spread.worst([call.axis])[1] < CLEAR_DB:
        axis = call.axis
        sizes = list(call.sizes) or [1] * spread._shape[axis]
    parts, clear = spread.parts(axis, sizes)
    return Unlike(name, axis, parts, clear, at_end, worst)


def _confirmed(network: Network, samples: Samples, candidates: list[Unlike]) -> list[Unlike]:
    """Return the candidates that destroy a slice of an output when they alone have a single scale."""
    edits: list[tuple[str, Edit]] = []
    for each in candidates:
        edits += [(each.name, _Rounded(each, whole=True)), (each.name, _Rounded(each, whole=False))]
    if not edits:
        return []
    errors: list[dict[int, _Error]] = [{} for _ in edits]
    for sample in samples:
        exact, *edited = network.replay(sample, edits)
        for found, outputs in zip(errors, edited, strict=True):
            for index, name in enumerate(network.outputs):
                if name in network.calls:
                    found.setdefault(index, _Error(exact[index].shape)).add(exact[index], outputs[index])
    confirmed = []
    for each, single, separate in zip(candidates, errors[::2], errors[1::2], strict=True):
        lost = [single[index].lost(separate[index]) for index in single]
        worst = float(np.concatenate([np.zeros(0), *lost]).min(initial=np.inf))
        if worst < CLEAR_DB:
            confirmed.append(replace(each, worst_db=worst))
    return confirmed


class _Rounded:
    """Round a value to int8, with one scale or with one scale for each part."""

    def __init__(self, value: Unlike, *, whole: bool) -> None:
        parts = value.parts
        low, high = min(part.low for part in parts), max(part.high for part in parts)
        self._axis = value.axis
        self._parts = (Part(0, parts[-1].end, low, high),) if whole else parts

    def __call__(self, value: Array) -> Array:
        moved = np.moveaxis(value, self._axis, 0)
        result = np.empty_like(moved)
        for part in self._parts:
            step = (part.high - part.low) / _LEVELS or 1.0
            levels = np.rint(moved[part.start : part.end].clip(part.low, part.high) / step)
            result[part.start : part.end] = levels * step
        return np.ascontiguousarray(np.moveaxis(result, 0, self._axis))


class _Error:
    """Collect the error of every slice of an output, along every axis, over samples."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._spread, self._noise = _Spread(shape), _Spread(shape)

    def add(self, exact: Array, got: Array) -> None:
        self._spread.add(exact)
        self._noise.add(got.astype(np.float64) - exact)

    def lost(self, separate: _Error) -> Array:
        """Return the SQNR in dB of the slices that ``separate``, the error with a scale for each part, raises enough.

        Where most slices hardly vary, as in untrained networks, some means are near zero by chance. Slices are left out
        there, as long as they are no more and no smaller than chance explains.
        """
        found = [np.zeros(0)]
        for axis in self._spread._axes:
            single, apart = self._levels(axis), separate._levels(axis)
            mended = (single < CLEAR_DB) & (apart >= single + _GAIN_DB)
            mean, square = self._spread.moments(axis)
            if np.mean(square - np.square(mean) > _VARYING**2 * square) <= 0.5:
                expected = len(mean) * np.sqrt(square / max(float(square.mean()), 1e-300))  # slices as small, about
                by_chance = mended & (expected > _RARE)
                plausible = 1 + 3 * float(expected[by_chance].max(initial=0.0))
                mended &= ~by_chance | (by_chance.sum() > plausible)
            found.append(single[mended])
        return np.concatenate(found)

    def _levels(self, axis: int) -> Array:
        """Return the SQNR in dB of every slice along an axis; infinite for a constant one."""
        return self._spread.levels(axis, np.sqrt(12 * self._noise.moments(axis)[1]))
