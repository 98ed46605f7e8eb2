"""Measure the latency of a runner, and the speed-up of one runner over another, with confidence intervals.

Call ``measure(runner, inputs)`` for a latency, ``compare(a, b, inputs)`` for a speed-up.

The speed of a machine changes within seconds and between processes. So the runners are interleaved in one session, and
ratios are computed within a block. The interval is computed from the spread of these ratios, not of single calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypedDict, Unpack

import numpy as np

from hnas.export.device.artifact import Artifact
from hnas.export.device.serve_artifacts import time_calls
from hnas.export.graph.samples import to_sample
from hnas.export.proof.measurement import Comparison, Measurement
from hnas.export.proof.statistics import ratio_interval
from hnas.export.remote.transports import local
from hnas.export.remote.worker import Worker

if TYPE_CHECKING:
    from hnas.export.device.runtimes import Runner
    from hnas.export.graph.samples import SampleLike
    from hnas.export.remote.transports import Transport

Array: TypeAlias = np.ndarray[Any, Any]
_Contender: TypeAlias = "Runner | Worker | Artifact | Path | str"
Inputs: TypeAlias = "SampleLike | Callable[[Artifact], SampleLike]"  # a function where shapes differ
_Timer: TypeAlias = Callable[[int, int], Array]  # (calls, untimed calls before them) -> seconds of each

_WINDOW, _SHORTEST_WARMUP, _LONGEST_WARMUP = 0.02, 0.1, 2.0  # seconds of calls
_STEADY = 0.03  # the warm-up ends when the medians of its windows differ by at most this share


class _ComparisonOptions(TypedDict, total=False):
    """Name the options of ``compare`` and ``compare_many``. The docstring of ``compare_many`` describes them."""

    blocks: int
    runs: int | None
    processes: int
    seed: int
    confidence: float
    transport: Transport


@dataclass(frozen=True)
class _Session:
    """Hold the checked options of a comparison, with their defaults."""

    blocks: int = 20
    runs: int | None = None
    processes: int = 1
    seed: int = 0
    confidence: float = 0.95
    transport: Transport = local

    def __post_init__(self) -> None:
        if self.blocks < 2 or self.processes < 1 or (self.runs is not None and self.runs < 1):
            given = f"blocks={self.blocks}, processes={self.processes}, runs={self.runs}"
            raise ValueError(f"{given}; expected at least 2, 1 and 1")
        if not 0.5 <= self.confidence < 1:
            raise ValueError(f"confidence is {self.confidence}, expected 0.5 to below 1")


def measure(
    runner: _Contender,
    inputs: SampleLike,
    *,
    runs: int = 200,
    seconds: float = 2.0,
    seed: int = 0,
    transport: Transport = local,
) -> Measurement:
    """Measure the latency of a runner after a warm-up.

    An artifact or a path is opened in a new Worker, by the backend that it was built for. A Runner is timed in this
    process, a Worker in the process of its runtime.

    inputs: a list with one array or tensor for each input of the model; a bare array is the one input.
    runs: number of timed calls.
    seconds: time limit of the timed calls; at least 10 calls are made unless ``runs`` is lower.
    seed: seed of the bootstrap of the interval.
    transport: the machine that opens an artifact or a path; default this one.

    Raises:
        Unavailable: the runtime is missing.

    Example: ``print(measure("out/fp32", [images]).line())``
    """
    with ExitStack() as stack:
        opened = _open(runner, inputs, stack, transport)
        warmup = _warm(opened.timer)
        fitting = max(10, int(seconds / warmup.median))
        times = opened.timer(min(runs, fitting), 0)
    return Measurement(tuple(times.tolist()), opened.batch, opened.threads, warmup.calls, warmup.settled, seed)


def compare(a: _Contender, b: _Contender, inputs: Inputs, **options: Unpack[_ComparisonOptions]) -> Comparison:
    """Return the speed-up of ``b`` over ``a``: ``compare_many`` with one candidate, and the same options.

    Example: ``print(compare("out/fp32", "out/int8", [images], processes=5).line())``
    """
    (comparison,) = compare_many(a, [b], inputs, **options)
    return comparison


def compare_many(
    baseline: _Contender,
    candidates: Sequence[_Contender],
    inputs: Inputs,
    **options: Unpack[_ComparisonOptions],
) -> list[Comparison]:
    """Return the speed-up of each candidate over the baseline, all measured in one interleaved session.

    In each block every contender runs twice: once in a random order and once in its reverse. Artifacts and paths are
    opened in new Workers for each process.

    inputs: one array for each input; or, if the shapes differ, a function that returns them for an artifact.
    blocks: number of blocks in each process, at least 2; default 20.
    runs: calls of a contender each time it runs, at least 1; None, the default, fills about 20 ms with 3 to 100 calls.
    processes: number of new processes, one after the other; default 1. More than one requires artifacts or paths.
    seed: seed of the order of the contenders and of the bootstrap; default 0.
    confidence: confidence of the intervals, 0.5 to below 1; default 0.95.
    transport: the machine that opens artifacts and paths; default this one.

    Raises:
        ValueError: an option is out of range, or ``processes`` is above 1 and a contender is already open.
        Unavailable: a runtime is missing.

    Example: ``fp16, int8 = compare_many("out/fp32", ["out/fp16", "out/int8"], [images], processes=5)``
    """
    session = _Session(**options)
    contenders = [baseline, *candidates]
    if session.processes > 1 and not all(isinstance(contender, Artifact | Path | str) for contender in contenders):
        raise ValueError(f"processes={session.processes} needs artifacts or paths: an open runner has one process")
    first, *others = _time_contenders(contenders, inputs, session)
    measured = first.measurement(session.seed)
    return [_compared(measured, first.blocks, record, session) for record in others]


@dataclass
class _Record:
    """Hold the times of one contender over all processes, in seconds. ``blocks`` has one figure for each block."""

    times: list[float] = field(default_factory=list)
    blocks: list[float] = field(default_factory=list)
    batch: int = 1
    threads: int = 1
    warmup: int = 0
    settled: bool = True

    def measurement(self, seed: int) -> Measurement:
        return Measurement(tuple(self.times), self.batch, self.threads, self.warmup, self.settled, seed)


def _time_contenders(contenders: Sequence[_Contender], inputs: Inputs, session: _Session) -> list[_Record]:
    """Open and time all contenders together, once for each process."""
    rng = np.random.default_rng(session.seed)
    records = [_Record() for _ in contenders]
    for _ in range(session.processes):
        with ExitStack() as stack:
            opened = [_open(contender, inputs, stack, session.transport) for contender in contenders]
            for record, each in zip(records, opened, strict=True):
                record.batch, record.threads = each.batch, each.threads
            _time_blocks([each.timer for each in opened], records, session.blocks, session.runs, rng)
    return records


def _compared(a: Measurement, blocks: Sequence[float], record: _Record, session: _Session) -> Comparison:
    """Compare a record with the baseline's measurement and blocks."""
    pairs = np.array([blocks, record.blocks]).T
    logs = np.log(pairs[:, 0] / pairs[:, 1]).reshape(session.processes, -1)
    ratio, low, high = ratio_interval(logs, session.confidence, session.seed)
    paired = tuple((float(one), float(other)) for one, other in pairs)
    b = record.measurement(session.seed)
    return Comparison(a, b, ratio, low, high, paired, session.processes, session.confidence)


@dataclass(frozen=True)
class _Warmup:
    calls: int
    settled: bool
    median: float  # seconds, of the last window


def _time_blocks(
    timers: Sequence[_Timer], records: Sequence[_Record], blocks: int, runs: int | None, rng: np.random.Generator
) -> None:
    """Warm up all contenders, then time each twice in each block.

    The figure of a block is the geometric mean of its two medians.
    """
    plans = []
    for timer, record in zip(timers, records, strict=True):
        warmup = _warm(timer)
        record.warmup += warmup.calls
        record.settled &= warmup.settled
        lead = min(100, math.ceil(0.001 / warmup.median))  # untimed: the other contenders have emptied the caches
        plans.append((runs or _calls(_WINDOW, warmup.median, 3, 100), lead))
    for _ in range(blocks):
        order = rng.permutation(len(timers)).tolist()
        logs = np.zeros(len(timers))
        for index in [*order, *reversed(order)]:
            times = timers[index](*plans[index])
            records[index].times += times.tolist()
            logs[index] += math.log(float(np.median(times))) / 2
        for record, log in zip(records, logs, strict=True):
            record.blocks.append(math.exp(log))


def _warm(timer: _Timer) -> _Warmup:
    """Make calls for 0.1 s, then until the medians of three successive windows differ by at most 3 %; at most 2 s."""
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
    """Return the number of calls that fill ``seconds``, from ``low`` to ``high``."""
    return min(high, max(low, math.ceil(seconds / each)))


class _Opened(NamedTuple):
    timer: _Timer
    batch: int
    threads: int


def _open(contender: _Contender, inputs: Inputs, stack: ExitStack, transport: Transport) -> _Opened:
    """Prepare a contender for timing; a Worker for an artifact or a path closes with ``stack``."""
    if isinstance(contender, Artifact | Path | str):
        artifact = contender if isinstance(contender, Artifact) else Artifact.read(contender)
        # Without ``backend``, an artifact for another device would be timed in the runtime that verified it.
        contender = stack.enter_context(Worker(artifact, backend=artifact.backend, transport=transport))
    given = to_sample(inputs(contender.artifact) if callable(inputs) else inputs)
    batch, threads = _batch(given), contender.artifact.threads
    if hasattr(contender, "time"):
        remote = contender.time
        return _Opened(lambda runs, lead: np.array(remote(given, runs, lead=lead)), batch, threads)
    call = contender.bind(*given)
    return _Opened(lambda runs, lead: np.array(time_calls(call, runs, lead=lead)), batch, threads)


def _batch(inputs: Sequence[Array]) -> int:
    return int(inputs[0].shape[0]) if inputs and inputs[0].ndim else 1
