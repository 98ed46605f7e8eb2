"""Measure other figures than the median latency, in the same paired blocks: ``comparer_of("p99")``.

Each returns a function of the type ``session.Compare``, so rounds, intervals and verdicts are those of ``check``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from hnas.benchmarks.gate import session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hnas.benchmarks.gate.suite import Measured
    from hnas.export.device.artifact import Artifact
    from hnas.export.remote.worker import Worker

_STATUS = "VmHWM:"


def comparer_of(measured: Measured, pixels: Mapping[str, session.Inputs]) -> session.Compare:
    """Return the function that compares a baseline with candidates by the figure ``measured``.

    1. p50, and end to end: the median of each block.
    2. p90, p99, throughput: a figure over the calls of neighbouring blocks.
    3. cold start, first inference, peak memory: one figure of each process, so each block starts new processes.

    pixels: by the digest of an artifact, an image and its preprocessing, for ``end_to_end``; without them the call
        begins at the inputs.
    """
    if measured == "p50":  # case 1
        return session.compare_fresh
    if measured == "end_to_end":
        return EndsCompare(pixels)
    if measured in _QUANTILES:  # case 2
        return Quantile(_QUANTILES[measured])
    return _Starts(_FIGURES[measured])  # case 3


_QUANTILES: Mapping[str, float | None] = {"p90": 90.0, "p99": 99.0, "throughput": None}


@dataclass
class Quantile:
    """Compare by a percentile of the calls, or by their mean where ``percent`` is None: the inverse of a throughput.

    fewest: calls in the shortest stretch so far; 0: nothing was measured yet.
    """

    percent: float | None
    fewest: int = 0

    def note(self) -> str:
        """Return of how many calls a percentile is, and whether they are too few for it; empty for a mean."""
        if self.percent is None:
            return ""
        few = self.fewest * (100 - self.percent) < 100
        told = f"; each p{self.percent:g} is of {self.fewest} call{'' if self.fewest == 1 else 's'} or more"
        return f"{told}, so it may be little below their largest" if few else told

    def __call__(
        self, baseline: Artifact, candidates: Sequence[Artifact], inputs: Any, *, blocks: int, seed: int
    ) -> list[Any]:
        """Compare in one session, as ``session.Compare`` says."""
        found = session.compare_fresh(baseline, candidates, inputs, blocks=blocks, seed=seed)
        return [SimpleNamespace(a=one.a, b=one.b, pairs=self._pairs(one.a.times, one.b.times)) for one in found]

    def _pairs(self, a: Sequence[float], b: Sequence[float]) -> tuple[tuple[float, float], ...]:
        """Return one pair for each of ``FEWEST_BLOCKS`` stretches of the calls, which are the same blocks of both."""
        import numpy as np

        percent, calls = self.percent, min(len(a), len(b)) // session.FEWEST_BLOCKS
        self.fewest = min(self.fewest or calls, calls)
        sides = [
            [
                float(part.mean() if percent is None else np.percentile(part, percent))
                for part in np.array_split(np.array(times), session.FEWEST_BLOCKS)
            ]
            for times in (a, b)
        ]
        return tuple(zip(*sides, strict=True))


@dataclass(frozen=True)
class EndParts:
    """The parts of a call from end to end, as medians in milliseconds.

    prepare: pixels to the input; None where the preprocessing is not known.
    run: the runtime, from array to array. answer: softmax and the best classes.
    n: number of calls.
    """

    prepare: float | None
    run: float
    answer: float
    n: int

    def line(self) -> str:
        """Return the parts as one line."""
        first = "" if self.prepare is None else f"prepare {self.prepare:.3g} ms, "
        whole = (self.prepare or 0.0) + self.run + self.answer
        around = 1 - self.run / whole if whole else 0.0
        parts = f"{first}run {self.run:.3g} ms, answer {self.answer:.3g} ms"
        return f"{parts} (medians, n={self.n:,}); {around:.0%} of the time is around the run"


@dataclass(frozen=True)
class EndsCompare:
    """Compare the seconds from pixels, or from the inputs where the preprocessing is not known, to the best classes.

    seen: by the digest of an artifact, the seconds of the parts of every timed call, [calls, 4] for each block.
    """

    pixels: Mapping[str, session.Inputs]
    seen: dict[str, list[NDArray[Any]]] = field(default_factory=dict)

    def __call__(
        self, baseline: Artifact, candidates: Sequence[Artifact], inputs: Any, *, blocks: int, seed: int
    ) -> list[Any]:
        """Compare in one session, as ``session.Compare`` says."""
        return session.compare_fresh(
            baseline, candidates, inputs, blocks=blocks, seed=seed, contender=lambda worker: _Ends(worker, self)
        )

    def parts(self, artifact: Artifact) -> EndParts | None:
        """Return the parts of a call of ``artifact``; None if it was not timed."""
        import numpy as np

        if artifact.digest not in self.seen:
            return None
        times = np.concatenate(self.seen[artifact.digest])
        prepare, copies, run, answer = (1e3 * float(each) for each in np.median(times, axis=0))
        known = artifact.digest in self.pixels
        return EndParts(prepare if known else None, copies + run, answer, len(times))


class _Ends:
    """A worker whose ``time`` is that of calls from end to end."""

    def __init__(self, worker: Worker, found: EndsCompare) -> None:
        self.artifact, self._worker = worker.artifact, worker
        self._pixels = found.pixels.get(worker.artifact.digest)
        self._seen = found.seen.setdefault(worker.artifact.digest, [])

    def time(self, inputs: Sequence[Any], runs: int, *, lead: int = 0) -> list[float]:  # noqa: ARG002 - as a Worker
        """Return the seconds of ``runs`` calls; three untimed calls come before them."""
        arrays = inputs if self._pixels is None else self._pixels
        parts = self._worker.time_ends(arrays, runs, pixels=self._pixels is not None)
        self._seen.append(parts)
        return [float(each) for each in parts.sum(axis=1)]


def _cold(began: float, _worker: Worker, _first: float) -> float:
    return time.perf_counter() - began


def _first(_began: float, _worker: Worker, first: float) -> float:
    return first


def _peak(_began: float, worker: Worker, _first: float) -> float:
    """Return the most memory that the process had, in bytes."""
    lines = Path(f"/proc/{worker.pid}/status").read_text("utf-8").splitlines()
    return 1024.0 * int(next(line for line in lines if line.startswith(_STATUS)).split()[1])


_FIGURES: Mapping[str, Callable[[float, Worker, float], float]] = {
    "cold_start": _cold,
    "first_inference": _first,
    "peak_memory": _peak,
}


@dataclass(frozen=True)
class _Starts:
    """Compare one figure of a process after its first call: (start of the process, worker, first call) -> figure."""

    figure: Callable[[float, Worker, float], float]

    def __call__(
        self, baseline: Artifact, candidates: Sequence[Artifact], inputs: Any, *, blocks: int, seed: int
    ) -> list[Any]:
        import numpy as np

        rng = np.random.default_rng(seed)
        sides = [baseline, *candidates]
        figures: list[list[float]] = [[] for _ in sides]
        spent: list[list[float]] = [[] for _ in sides]
        for _ in range(blocks):
            for index in rng.permutation(len(sides)).tolist():
                began = time.perf_counter()
                figures[index].append(self._start(sides[index], inputs, began))
                spent[index].append(time.perf_counter() - began)
        timed = [SimpleNamespace(times=tuple(each)) for each in spent]
        return [
            SimpleNamespace(a=timed[0], b=one, pairs=tuple(zip(figures[0], each, strict=True)))
            for one, each in zip(timed[1:], figures[1:], strict=True)
        ]

    def _start(self, artifact: Artifact, inputs: Any, began: float) -> float:
        from hnas.export.remote.worker import Worker

        with Worker(artifact, backend=artifact.backend) as worker:
            (first,) = worker.time(inputs(artifact), 1)
            return self.figure(began, worker, first)
