"""Define the records of measured times: the latency of a runner, and the speed-up of one runner over another.

``hnas.export.proof.timing`` returns these records: ``measure(runner, inputs).line()``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from hnas.export.device.records import JSON, decode, encode
from hnas.export.proof.load import Load
from hnas.export.proof.statistics import median_interval, ratio_interval

_NOISY, _VERY_NOISY = 0.10, 0.25  # IQR divided by the median
_TAIL = 3.0  # p99 divided by the median


@dataclass(frozen=True)
class Measurement:
    """Hold the raw times of one runner, and the conditions of the measurement.

    times: seconds of each call, in the order of the calls.
    batch, threads: batch size of the inputs, number of threads of the runtime.
    warmup: number of calls before the first timed call.
    settled: whether the times of the warm-up calls had become steady.
    seed: seed of the bootstrap in ``interval_ms``.

    Raises:
        ValueError: a time is not a positive finite number, or there are none.
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
        """Return the median, which is the reported latency."""
        return self._percentile_ms(50)

    @property
    def p90_ms(self) -> float:
        """Return the 90th percentile."""
        return self._percentile_ms(90)

    @property
    def p99_ms(self) -> float:
        """Return the 99th percentile."""
        return self._percentile_ms(99)

    @property
    def iqr_ms(self) -> float:
        """Return the interquartile range."""
        return self._percentile_ms(75) - self._percentile_ms(25)

    @property
    def steady(self) -> bool:
        """Return True if the warm-up settled and the IQR is at most 10 % of the median."""
        return self.settled and self.iqr_ms <= _NOISY * self.median_ms

    @property
    def noise(self) -> str:
        """Return the warnings about the times, or an empty text.

        1. The IQR is above 10 % ("noisy") or 25 % ("very noisy") of the median.
        2. The 99th percentile is above 3 times the median ("long tail").
        """
        spread, tail = self.iqr_ms / self.median_ms, self.p99_ms / self.median_ms
        said = []
        if spread > _NOISY:  # case 1
            said.append(f"{'very noisy' if spread > _VERY_NOISY else 'noisy'}: IQR is {spread:.0%} of the median")
        if tail > _TAIL:  # case 2
            said.append(f"long tail: p99 is {tail:.0f} times the median")
        return "; ".join(said)

    def interval_ms(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return the interval of the median within this session, by a bootstrap of blocks of neighbouring times.

        The median of another session may lie outside: it differs by several per cent between processes.
        """
        low, high = median_interval(np.array(self.times), confidence, self.seed)
        return min(low * 1e3, self.median_ms), max(high * 1e3, self.median_ms)  # exp(log(x)) may differ from x

    def line(self) -> str:
        """Return one line for a person: the latency, its interval, batch, threads and every warning."""
        low, high = self.interval_ms()
        said = [
            f"{self.median_ms:.3g} ms (median; 95 % interval {low:.3g} to {high:.3g}; p90 {self.p90_ms:.3g}",
            f"p99 {self.p99_ms:.3g}; batch {self.batch}, {_count(self.threads, 'thread')}, n={len(self.times)})",
        ]
        doubts = [self.noise, "" if self.settled else "the warm-up had not settled"]
        return ", ".join(said) + "".join(f"; {doubt}" for doubt in doubts if doubt)

    def to_json(self) -> JSON:
        """Return the fields as JSON values."""
        return encode(self)

    @classmethod
    def from_json(cls, value: JSON) -> Measurement:
        """Read the output of ``to_json``; raise ValueError in one line for anything else."""
        return decode(cls, value, "measurement")

    def _percentile_ms(self, percent: float) -> float:
        return float(np.percentile(self._sorted, percent)) * 1e3

    @cached_property
    def _sorted(self) -> np.ndarray[Any, Any]:
        return np.sort(np.array(self.times))


@dataclass(frozen=True)
class Comparison:
    """Hold the speed-up of ``b`` over ``a``: ``ratio``, in the interval [``low``, ``high``] at ``confidence``.

    ``pairs`` are the seconds of a and b in each block, in the order of processes and blocks. Slow changes of the
    machine's speed cancel within a pair.

    The ratio is a mean over processes. Each process contributes the mean of the logarithms of its pairs' ratios,
    with 20 % trimmed at each end. The ratio need not be the quotient of the two medians.

    The interval is a bootstrap over processes and then pairs, widened by Student's t for the number of processes.
    ``load`` is the load of the machine during the measurement; None: it is not known. ``widened`` is the factor by
    which both ends of the intervals were widened because the machine was busy.

    One process gives the interval of that process, and ``line`` says so. Two give a wide interval: use five where a
    decision depends on it.

    Raises:
        ValueError: the ratio lies outside of its interval, or the pairs do not divide by the processes.
    """

    a: Measurement
    b: Measurement
    ratio: float
    low: float
    high: float
    pairs: tuple[tuple[float, float], ...]
    processes: int = 1
    confidence: float = 0.95
    load: Load | None = None
    widened: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.ratio <= self.high:
            raise ValueError(f"ratio is {self.ratio:g} outside of its interval {self.low:g} to {self.high:g}")
        if self.processes < 1 or not self.pairs or len(self.pairs) % self.processes:
            raise ValueError(
                f"{len(self.pairs)} pairs, expected the same number for each of {self.processes} processes"
            )

    def interval_ms(self, which: Literal["a", "b"]) -> tuple[float, float]:
        """Return the interval of the median of ``a`` or ``b`` over processes, from the spread of its blocks."""
        seconds = np.array(self.pairs)[:, "ab".index(which)]
        centre, low, high = ratio_interval(np.log(seconds).reshape(self.processes, -1), self.confidence)
        median = (self.a if which == "a" else self.b).median_ms
        return median * low / centre / self.widened, median * high / centre * self.widened

    def line(self) -> str:
        """Return one line for a person: ratio, interval, processes and blocks.

        With one process the line says that the interval is that of this process: it missed the truth in 3 of 29 trials.
        """
        blocks = _count(len(self.pairs) // self.processes, "block")
        trust = f"{self.confidence:.0%} interval".replace("%", " %")
        alone = "; of this process alone, another may differ: processes=3 covers that" if self.processes == 1 else ""
        return f"{self.ratio:.3g}x ({trust} {self.low:.3g} to {self.high:.3g}; {self._processes} of {blocks}{alone})"

    @property
    def _processes(self) -> str:
        return f"{self.processes} process" + ("es" if self.processes > 1 else "")

    def to_json(self) -> JSON:
        """Return the fields as JSON values."""
        return encode(self)

    @classmethod
    def from_json(cls, value: JSON) -> Comparison:
        """Read the output of ``to_json``; raise ValueError in one line for anything else."""
        return decode(cls, value, "comparison")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
