"""Measure how much CPU time other programs use during a measurement: ``watch = Watch(); ...; watch.load()``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hnas.export.proof.statistics import ratio_interval

if TYPE_CHECKING:
    from hnas.export.proof.measurement import Comparison, Measurement

_SHORTEST = 0.2  # seconds; the system counts CPU time in steps of 10 ms
_SLACK = 0.1  # cores that a measured thread may lack before the machine counts as busy
WIDENED = 1.15  # factor of both ends of an interval that was measured on a busy machine, as two starts may differ


@dataclass(frozen=True)
class Load:
    """Hold the load of a machine during a measurement.

    ``others``: the number of cores that other programs used on average.
    ``cores``: the number of cores that the measuring process may use.
    """

    others: float
    cores: int

    def busy(self, threads: int = 1) -> bool:
        """Return whether other programs left less than one core to each of the measured ``threads``."""
        return self.others > self.cores - threads + _SLACK

    def line(self) -> str:
        """Return the load as one line for a person."""
        return f"other programs used {self.others:.1f} of {self.cores} cores"


@dataclass(frozen=True)
class Reading:
    """Hold counters of CPU seconds: of all programs on the usable cores, and of this process with its children."""

    clock: float
    all: float
    own: float


class Watch:
    """Measure the load from the construction to ``load``. ``read`` returns the counters; tests replace it."""

    def __init__(self, read: Callable[[], Reading | None] | None = None, cores: int | None = None) -> None:
        self._read = read or read_counters
        self._cores = cores or len(os.sched_getaffinity(0))
        self._begun = self._read()

    def load(self) -> Load | None:
        """Return the load since the construction, or None where the system does not count, or for a moment too short.

        The measured processes must have ended, because only then their seconds count as this process's own.
        """
        begun, ended = self._begun, self._read()
        if begun is None or ended is None or ended.clock - begun.clock < _SHORTEST:
            return None
        others = (ended.all - begun.all - (ended.own - begun.own)) / (ended.clock - begun.clock)
        return Load(round(min(max(others, 0.0), float(self._cores)), 2), self._cores)


def read_counters() -> Reading | None:
    """Return the counters of this moment, from /proc/stat; None where there is no such file."""
    try:
        lines = Path("/proc/stat").read_text("utf-8").splitlines()
    except OSError:
        return None
    usable = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    ticks = 0
    for name, *counts in map(str.split, lines):
        if name in usable:
            user, nice, system, _idle, _waiting, *rest = map(int, counts[:8])
            ticks += user + nice + system + sum(rest)  # interrupts, and what the host took from a virtual machine
    return Reading(time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), sum(os.times()[:4]))


def compare_again_if_busy(
    compare: Callable[[int], list[Comparison]], seed: int, watch: Callable[[], Watch] = Watch
) -> list[Comparison]:
    """Return the comparisons of ``compare(seed)`` with the load of the machine.

    1. Other programs left a core to each measured thread: the comparisons of one session.
    2. The machine was busy: a second session with fresh processes is measured. The interval covers the intervals of
       both sessions and is widened by ``WIDENED`` on both sides, because another hour's load is another one.
    """
    first, load = _watched(compare, seed, watch)
    if load is None or not any(load.busy(each.b.threads) for each in first):
        return [replace(each, load=load) for each in first]  # case 1
    second, later = _watched(compare, seed + 1, watch)  # case 2
    worst = load if later is None or later.others <= load.others else later
    return [_pooled(one, other, seed, worst) for one, other in zip(first, second, strict=True)]


def _watched(
    compare: Callable[[int], list[Comparison]], seed: int, watch: Callable[[], Watch]
) -> tuple[list[Comparison], Load | None]:
    seen = watch()
    return compare(seed), seen.load()


def _pooled(one: Comparison, other: Comparison, seed: int, load: Load) -> Comparison:
    """Return the comparison over the processes of two sessions, with a widened interval."""
    pairs, processes = one.pairs + other.pairs, one.processes + other.processes
    logs = np.log([a / b for a, b in pairs]).reshape(processes, -1)
    ratio, low, high = ratio_interval(logs, one.confidence, seed)
    return replace(
        one,
        a=_joined(one.a, other.a),
        b=_joined(one.b, other.b),
        ratio=ratio,
        low=min(low, one.low, other.low) / WIDENED,
        high=max(high, one.high, other.high) * WIDENED,
        pairs=pairs,
        processes=processes,
        load=load,
        widened=WIDENED,
    )


def _joined(one: Measurement, other: Measurement) -> Measurement:
    settled, warmup = one.settled and other.settled, one.warmup + other.warmup
    return replace(one, times=one.times + other.times, warmup=warmup, settled=settled)
