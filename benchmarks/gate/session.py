"""Interleaved comparisons over several fresh processes, held within a span of time.

``export.compare_many`` times one set of processes; here it is called round after round, so that progress can be shown
and a run that must end in a minute ends in a minute.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from hnas.benchmarks.gate.records import Ratio

if TYPE_CHECKING:
    import numpy as np

    from hnas.export.device.artifact import Artifact
    from hnas.export.proof.measurement import Comparison
    from hnas.export.remote.transports import Transport

Inputs: TypeAlias = "tuple[np.ndarray[Any, Any], ...]"
Given: TypeAlias = "Inputs | Callable[[Artifact], Inputs]"
"""What is run: arrays, or a function that gives those of an artifact where shapes differ."""
Progress: TypeAlias = Callable[[str, float], None]
"""Called with what is being done and the fraction of it that is finished."""

FEWEST_BLOCKS = 6
MOST_BLOCKS = 42
CONFIDENCE = 0.95


class Compare(Protocol):
    """``compare_fresh``, or the fake that a test puts in its place."""

    def __call__(
        self, baseline: Artifact, candidates: Sequence[Artifact], inputs: Given, *, blocks: int, seed: int
    ) -> list[Comparison]:
        """Each candidate against the baseline, from one interleaved session of fresh processes."""


def compare_fresh(
    baseline: Artifact,
    candidates: Sequence[Artifact],
    inputs: Given,
    *,
    blocks: int,
    seed: int,
    transport: Transport | None = None,
) -> list[Comparison]:
    """``export.compare_many`` over a new process of each, run by the very runtime that the artifact was built for.

    ``transport`` leads to another machine where that is asked for.

    The runtime is said, since a worker would open an artifact for another device with the one that verified it.
    """
    from hnas.export.proof.timing import compare_many
    from hnas.export.remote.transports import local
    from hnas.export.remote.worker import Worker

    with ExitStack() as stack:
        first, *others = (
            stack.enter_context(Worker(artifact, backend=artifact.backend, transport=transport or local))
            for artifact in (baseline, *candidates)
        )
        return compare_many(first, others, inputs, blocks=blocks, seed=seed, confidence=CONFIDENCE)


@dataclass
class Clock:
    """A span of seconds that began when the clock was made; ``now`` is replaced in tests."""

    seconds: float
    now: Callable[[], float] = time.monotonic
    start: float = field(init=False)

    def __post_init__(self) -> None:
        self.start = self.now()

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return self.now() - self.start

    @property
    def left(self) -> float:
        """Seconds until the span is over; negative after that."""
        return self.seconds - self.spent


@dataclass(frozen=True)
class Cost:
    """What a round takes in seconds: ``start`` for opening and warming up, and ``block`` for each block."""

    start: float
    block: float

    def affordable(self, seconds: float) -> int:
        """How many blocks fit into ``seconds``: a multiple of ``FEWEST_BLOCKS`` up to ``MOST_BLOCKS``, or 0."""
        fitting = int((seconds - self.start) / self.block) if self.block > 0 else MOST_BLOCKS
        return max(0, min(MOST_BLOCKS, fitting - fitting % FEWEST_BLOCKS))


def run(
    baseline: Artifact,
    candidates: Sequence[Artifact],
    inputs: Given,
    *,
    processes: int,
    clock: Clock,
    seed: int,
    compare: Compare,
    progress: Progress,
) -> list[Ratio]:
    """How many times faster each candidate is than ``baseline``, from up to ``processes`` fresh processes of each.

    1. A round starts one process of everybody and runs them in turns; a candidate that is the baseline shows the noise.
    2. The first round has ``FEWEST_BLOCKS`` blocks and tells what rounds cost; the others share the time that is left,
       up to ``MOST_BLOCKS`` blocks each.
    3. A round that would not end in time, even with the fewest blocks, is not begun; the ratio then says it was cut.
       The first round is always run.
    """
    rounds: list[list[Comparison]] = []
    blocks, began = FEWEST_BLOCKS, clock.spent
    for index in range(processes):
        if index:
            cost = _cost_of(rounds[-1], blocks, clock.spent - began)
            if not cost.affordable(clock.left):
                break
            blocks = max(FEWEST_BLOCKS, cost.affordable(clock.left / (processes - index)))
        progress(f"timing, process {index + 1} of {processes}", index / processes)
        began = clock.spent
        rounds.append(compare(baseline, candidates, inputs, blocks=blocks, seed=seed + index))
    progress("timed", 1.0)
    return [pool([one.pairs for one in each], planned=processes, seed=seed) for each in zip(*rounds, strict=True)]


def _cost_of(round_: Sequence[Comparison], blocks: int, elapsed: float) -> Cost:
    """What a round of ``blocks`` cost: the timed calls are the blocks', everything else is the start's."""
    timed = min(elapsed, sum(round_[0].a.times) + sum(sum(one.b.times) for one in round_))
    return Cost(elapsed - timed, timed / blocks)


def pool(rounds: Sequence[Sequence[tuple[float, float]]], *, planned: int, seed: int) -> Ratio:
    """The ratio over several processes and its interval, by the statistics of ``export.Comparison``.

    Rounds of more blocks are first brought to ``FEWEST_BLOCKS`` figures, each the median of as many neighbours, so that
    every process weighs the same.
    """
    import numpy as np

    from hnas.export.proof.statistics import ratio_interval

    logs = [np.log([a / b for a, b in pairs]).reshape(FEWEST_BLOCKS, -1) for pairs in rounds]
    ratio, low, high = ratio_interval(np.stack([np.median(one, axis=1) for one in logs]), CONFIDENCE, seed)
    kept = tuple(tuple((float(a), float(b)) for a, b in pairs) for pairs in rounds)
    return Ratio(ratio, low, high, CONFIDENCE, kept, planned)
