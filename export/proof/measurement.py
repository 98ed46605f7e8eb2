"""How long a runner takes, and by which factor another one is faster: raw times, robust figures, honest intervals.

A machine is slow for a second, or for a whole process, and then fast again. So contenders run in turns within one
session, a ratio is taken within a block, and the interval comes from the spread of these ratios, not of single calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

from hnas.export.device.artifact import Artifact
from hnas.export.device.records import JSON, decode, encode
from hnas.export.device.serve_artifacts import time_calls
from hnas.export.remote.transports import local
from hnas.export.remote.worker import Worker

if TYPE_CHECKING:
    from hnas.export.device.runtimes import Runner
    from hnas.export.remote.transports import Transport

Array: TypeAlias = np.ndarray[Any, Any]
_Contender: TypeAlias = "Runner | Worker | Artifact | Path | str"
Inputs: TypeAlias = "Sequence[Array] | Callable[[Artifact], Sequence[Array]]"  # a function where shapes differ
Timer: TypeAlias = Callable[[int, int], Array]  # (calls, untimed calls before them) -> seconds of each

_SAMPLES = 2000  # bootstrap samples
_TRIM = 0.2  # share cut from each end of a mean of log ratios: a stall of the machine must not decide
_WINDOW, _SHORTEST_WARMUP, _LONGEST_WARMUP = 0.02, 0.1, 2.0  # seconds of calls
_STEADY = 0.03  # windows of the warm-up agree within this
_NOISY, _VERY_NOISY = 0.10, 0.25  # IQR by median


@dataclass(frozen=True)
class Measurement:
    """The raw times of one runner in seconds, in the order taken, and what they were taken at.

    ``warmup`` calls came before; ``settled`` says whether they had become steady when the clock started.
    """

    times: tuple[float, ...]
    batch: int = 1
    threads: int = 1
    warmup: int = 0
    settled: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.times or not all(math.isfinite(time) and time > 0 for time in self.times):
            raise ValueError("times must be one or more positive numbers of seconds")

    @property
    def median_ms(self) -> float:
        """The figure that stands for a latency."""
        return self._percentile_ms(50)

    @property
    def p90_ms(self) -> float:
        """Nine calls of ten are at most this long."""
        return self._percentile_ms(90)

    @property
    def p99_ms(self) -> float:
        """All calls but one of a hundred are at most this long."""
        return self._percentile_ms(99)

    @property
    def iqr_ms(self) -> float:
        """The width of the middle half."""
        return self._percentile_ms(75) - self._percentile_ms(25)

    @property
    def steady(self) -> bool:
        """Settled before it began, and IQR at most 10 % of the median."""
        return self.settled and not self.noise

    @property
    def noise(self) -> str:
        """Empty, or what to say of the spread: above 10 % of the median noisy, above 25 % very noisy."""
        spread = self.iqr_ms / self.median_ms
        if spread <= _NOISY:
            return ""
        return f"{'very noisy' if spread > _VERY_NOISY else 'noisy'}: IQR is {spread:.0%} of the median"

    def interval_ms(self, confidence: float = 0.95) -> tuple[float, float]:
        """The interval of the median within this session, from blocks of neighbouring times.

        Another session may lie outside: from process to process the same artifact differs by several per cent.
        """
        times = np.array(self.times)
        length = max(1, round(math.sqrt(len(times))))  # neighbours are alike, so single times would promise too much
        blocks = math.ceil(len(times) / length)
        rng = np.random.default_rng(self.seed)
        starts = rng.integers(0, len(times), (_SAMPLES // 2, blocks, 1))
        medians = [
            np.median(times[(part + np.arange(length)).reshape(len(part), -1) % len(times)], axis=1)
            for part in np.array_split(starts, max(1, starts.shape[0] * len(times) // 10**6))
        ]
        low, high = _interval(np.log(np.concatenate(medians)), math.log(float(np.median(times))), blocks, confidence)
        return min(math.exp(low) * 1e3, self.median_ms), max(math.exp(high) * 1e3, self.median_ms)  # exp(log) rounds

    def line(self) -> str:
        """One line for a person, with everything that a latency must say of itself."""
        low, high = self.interval_ms()
        said = [
            f"{self.median_ms:.3g} ms (median; 95 % interval {low:.3g} to {high:.3g}; p90 {self.p90_ms:.3g}",
            f"p99 {self.p99_ms:.3g}; batch {self.batch}, {_count(self.threads, 'thread')}, n={len(self.times)})",
        ]
        doubts = [self.noise, "" if self.settled else "the warm-up had not settled"]
        return ", ".join(said) + "".join(f"; {doubt}" for doubt in doubts if doubt)

    def to_json(self) -> JSON:
        """The raw times and what they were taken at."""
        return encode(self)

    @classmethod
    def from_json(cls, value: JSON) -> Measurement:
        """The inverse of ``to_json``; ValueError in one line otherwise."""
        return decode(cls, value, "measurement")

    def _percentile_ms(self, percent: float) -> float:
        return float(np.percentile(self._sorted, percent)) * 1e3

    @cached_property
    def _sorted(self) -> Array:
        return np.sort(np.array(self.times))


@dataclass(frozen=True)
class Comparison:
    """By which factor ``b`` is faster than ``a``: ``ratio`` in [``low``, ``high``] at ``confidence``.

    ``pairs`` are the seconds of a and b in each block, block after block, process after process. The ratio is the
    centre of theirs (mean of the logarithms, 20 % trimmed at each end, then the mean over processes), in which a drift
    of the machine cancels; it need not be the quotient of the two medians. The interval is a bootstrap over processes
    and then pairs, widened by Student's t for the few units there are: two processes say little about a third, so take
    five where the interval decides something.
    """

    a: Measurement
    b: Measurement
    ratio: float
    low: float
    high: float
    pairs: tuple[tuple[float, float], ...]
    processes: int = 1
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.ratio <= self.high:
            raise ValueError(f"ratio is {self.ratio:g} outside of its interval {self.low:g} to {self.high:g}")
        if self.processes < 1 or not self.pairs or len(self.pairs) % self.processes:
            raise ValueError(f"pairs are {len(self.pairs)}, expected as many for each of {self.processes} processes")

    def interval_ms(self, which: Literal["a", "b"]) -> tuple[float, float]:
        """The interval of the median of ``a`` or ``b`` over processes, from the spread of its blocks between them."""
        seconds = np.array(self.pairs)[:, "ab".index(which)]
        centre, low, high = ratio_interval(np.log(seconds).reshape(self.processes, -1), self.confidence)
        median = (self.a if which == "a" else self.b).median_ms
        return median * low / centre, median * high / centre

    def line(self) -> str:
        """One line for a person."""
        blocks = _count(len(self.pairs) // self.processes, "block")
        trust = f"{self.confidence:.0%} interval".replace("%", " %")
        return f"{self.ratio:.3g}x ({trust} {self.low:.3g} to {self.high:.3g}; {self._processes} of {blocks})"

    @property
    def _processes(self) -> str:
        return f"{self.processes} process" + ("es" if self.processes > 1 else "")

    def to_json(self) -> JSON:
        """Both measurements, the pairs and the interval."""
        return encode(self)

    @classmethod
    def from_json(cls, value: JSON) -> Comparison:
        """The inverse of ``to_json``; ValueError in one line otherwise."""
        return decode(cls, value, "comparison")


def measure(
    runner: _Contender,
    inputs: Sequence[Array],
    *,
    runs: int = 200,
    seconds: float = 2.0,
    seed: int = 0,
    transport: Transport = local,
) -> Measurement:
    """The times of ``runs`` calls, or of as many (10 at least) as fit into ``seconds``, after a warm-up until steady.

    An artifact or a path is opened in a Worker of its own behind ``transport``, by the backend that it was built for
    (Unavailable where that is missing); a Runner is timed here, a Worker next to its runtime.
    """
    with ExitStack() as stack:
        opened = _open(runner, inputs, stack, transport)
        warmup = _warm(opened.timer)
        fitting = max(10, int(seconds / warmup.median))
        times = opened.timer(min(runs, fitting), 0)
    return Measurement(tuple(times.tolist()), opened.batch, opened.threads, warmup.calls, warmup.settled, seed)


def compare(a: _Contender, b: _Contender, inputs: Inputs, **session: Any) -> Comparison:
    """By which factor ``b`` is faster than ``a``: ``compare_many`` of the two, with its options."""
    (comparison,) = compare_many(a, [b], inputs, **session)
    return comparison


def compare_many(
    baseline: _Contender,
    candidates: Sequence[_Contender],
    inputs: Inputs,
    *,
    blocks: int = 20,
    runs: int | None = None,
    processes: int = 1,
    seed: int = 0,
    confidence: float = 0.95,
    transport: Transport = local,
) -> list[Comparison]:
    """By which factor each candidate is faster than the baseline, all in the same session.

    In each of ``blocks`` a process, everybody runs once in a random order and once in its reverse, ``runs`` calls a
    turn; None takes as many as fill about 20 ms, 3 to 100. Artifacts and paths are opened in fresh Workers behind
    ``transport`` for each of ``processes``; an open runner has one process only. ``inputs`` may be a function that
    gives those of an artifact, for contenders that read different shapes.
    """
    contenders = [baseline, *candidates]
    if blocks < 2 or processes < 1 or (runs is not None and runs < 1):
        raise ValueError(f"blocks={blocks}, processes={processes}, runs={runs}; expected at least 2, 1 and 1")
    if not 0.5 <= confidence < 1:
        raise ValueError(f"confidence is {confidence}, expected 0.5 to below 1")
    if processes > 1 and not all(isinstance(contender, Artifact | Path | str) for contender in contenders):
        raise ValueError(f"processes={processes} needs artifacts or paths: an open runner has one process")
    rng = np.random.default_rng(seed)
    records = [_Record() for _ in contenders]
    opened: list[_Opened] = []
    for _ in range(processes):
        with ExitStack() as stack:
            opened = [_open(contender, inputs, stack, transport) for contender in contenders]
            _session([each.timer for each in opened], records, blocks, runs, rng)
    measured = [
        Measurement(tuple(record.times), each.batch, each.threads, record.warmup, record.settled, seed)
        for record, each in zip(records, opened, strict=True)
    ]
    comparisons = []
    for record, measurement in zip(records[1:], measured[1:], strict=True):
        pairs = np.array([records[0].turns, record.turns]).T
        ratio, low, high = ratio_interval(np.log(pairs[:, 0] / pairs[:, 1]).reshape(processes, -1), confidence, seed)
        paired = tuple((float(a), float(b)) for a, b in pairs)
        comparisons.append(Comparison(measured[0], measurement, ratio, low, high, paired, processes, confidence))
    return comparisons


def ratio_interval(logs: Array, confidence: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """(ratio, low, high) from the log ratios of pairs, [processes, pairs]: the statistics of ``Comparison``."""
    processes, pairs = logs.shape
    rng = np.random.default_rng(seed)
    centre = float(_trimmed_mean(logs).mean())
    chosen = rng.integers(0, processes, (_SAMPLES, processes, 1))
    sampled = logs[chosen, rng.integers(0, pairs, (_SAMPLES, processes, pairs))]
    units = processes if processes > 1 else pairs
    low, high = _interval(_trimmed_mean(sampled).mean(axis=1), centre, units, confidence)
    return math.exp(centre), math.exp(low), math.exp(high)


@dataclass
class _Record:
    """What a session notes of one contender: every time, and one figure a block."""

    def __post_init__(self) -> None:
        self.times: list[float] = []
        self.turns: list[float] = []
        self.warmup = 0
        self.settled = True


@dataclass(frozen=True)
class _Warmup:
    calls: int
    settled: bool
    median: float  # seconds, of the last window


def _session(
    timers: Sequence[Timer], records: Sequence[_Record], blocks: int, runs: int | None, rng: np.random.Generator
) -> None:
    """Warm everybody up, then time everybody twice a block; a block's figure is the geometric mean of both medians."""
    plans = []
    for timer, record in zip(timers, records, strict=True):
        warmup = _warm(timer)
        record.warmup += warmup.calls
        record.settled &= warmup.settled
        lead = min(100, math.ceil(0.001 / warmup.median))  # the others have taken the caches
        plans.append((runs or _calls(_WINDOW, warmup.median, 3, 100), lead))
    for _ in range(blocks):
        order = rng.permutation(len(timers)).tolist()
        logs = np.zeros(len(timers))
        for index in [*order, *reversed(order)]:
            times = timers[index](*plans[index])
            records[index].times += times.tolist()
            logs[index] += math.log(float(np.median(times))) / 2
        for record, log in zip(records, logs, strict=True):
            record.turns.append(math.exp(log))


def _warm(timer: Timer) -> _Warmup:
    """Call for 0.1 s and then until three windows in a row have medians within 3 % of each other, 2 s at most."""
    first = timer(3, 0)
    calls, spent = len(first), float(first.sum())
    window = _calls(_WINDOW, float(np.median(first)), 3, 200)
    medians: list[float] = []
    while not medians or spent < _LONGEST_WARMUP:
        times = timer(window, 0)
        calls, spent = calls + len(times), spent + float(times.sum())
        medians.append(float(np.median(times)))
        last = medians[-3:]
        if spent >= _SHORTEST_WARMUP and len(last) == 3 and max(last) <= min(last) * (1 + _STEADY):
            return _Warmup(calls, True, medians[-1])
    return _Warmup(calls, False, medians[-1])


def _calls(seconds: float, each: float, low: int, high: int) -> int:
    """How many calls fill ``seconds``, within bounds."""
    return min(high, max(low, math.ceil(seconds / each)))


class _Opened(NamedTuple):
    """How to time a contender, and what its figures must say of themselves."""

    timer: Timer
    batch: int
    threads: int


def _open(contender: _Contender, inputs: Inputs, stack: ExitStack, transport: Transport) -> _Opened:
    """A contender ready to be timed on its inputs; artifacts and paths get a Worker that ends with ``stack``."""
    if isinstance(contender, Artifact | Path | str):
        artifact = contender if isinstance(contender, Artifact) else Artifact.read(contender)
        # The backend is said, or an artifact for another device would be timed in the runtime that verified it.
        contender = stack.enter_context(Worker(artifact, backend=artifact.backend, transport=transport))
    given = inputs(contender.artifact) if callable(inputs) else inputs
    batch, threads = _batch(given), contender.artifact.threads
    if hasattr(contender, "time"):
        remote = contender.time
        return _Opened(lambda runs, lead: np.array(remote(given, runs, lead=lead)), batch, threads)
    call = contender.bind(*given)
    return _Opened(lambda runs, lead: np.array(time_calls(call, runs, lead=lead)), batch, threads)


def _batch(inputs: Sequence[Array]) -> int:
    return int(inputs[0].shape[0]) if inputs and inputs[0].ndim else 1


def _trimmed_mean(values: Array) -> Array:
    """The mean over the last axis without its smallest and largest fifth."""
    cut = int(values.shape[-1] * _TRIM)
    return np.asarray(np.sort(values, axis=-1)[..., cut : values.shape[-1] - cut].mean(axis=-1))


def _interval(samples: Array, centre: float, units: int, confidence: float) -> tuple[float, float]:
    """Percentiles of the bootstrap ``samples``, moved away from ``centre`` as far as a sample of ``units`` demands.

    A bootstrap of n units is too narrow by sqrt((n - 1) / n) and by the normal's quantile in the place of Student's
    (Hesterberg 2015, What Teachers Should Know About the Bootstrap, section 4.1).
    """
    tail = (1 + confidence) / 2
    low, high = np.quantile(samples, [1 - tail, tail])
    if units > 1:
        widen = student_quantile(tail, units - 1) / NormalDist().inv_cdf(tail) * math.sqrt(units / (units - 1))
        low, high = centre - widen * (centre - low), centre + widen * (high - centre)
    return min(float(low), centre), max(float(high), centre)


def student_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t: with t = sqrt(freedom) tan(angle) its density is cos(angle)^(freedom - 1)."""
    angles = np.linspace(-math.pi / 2, math.pi / 2, 20_001)
    density = np.cos((angles[1:] + angles[:-1]) / 2) ** (freedom - 1)
    cumulative = np.concatenate([[0.0], np.cumsum(density)])
    return math.sqrt(freedom) * math.tan(float(np.interp(probability, cumulative / cumulative[-1], angles)))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
