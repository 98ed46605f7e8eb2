"""Compare artifacts in interleaved blocks over several fresh processes, within a span of time.

Call ``compare_in_rounds(baseline, candidates, inputs, ...)``. It calls ``export.compare_many`` once for each process,
so that progress can be shown and a run ends in time.
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

    from hnas.export.device.artifact import Artifact, TensorSpec
    from hnas.export.proof.measurement import Comparison
    from hnas.export.remote.transports import Transport
    from hnas.export.remote.worker import Worker

Inputs: TypeAlias = "tuple[np.ndarray[Any, Any], ...]"
_Given: TypeAlias = "Inputs | Callable[[Artifact], Inputs]"
"""The inputs of a run: arrays, or a function that returns the arrays of an artifact where shapes differ."""
Progress: TypeAlias = Callable[[str, float], None]
"""Called with the current step and the finished fraction of the work."""

FEWEST_BLOCKS = 6
MOST_BLOCKS = 42
_CONFIDENCE = 0.95


class Compare(Protocol):
    """``compare_fresh``, or the fake of a test."""

    def __call__(
        self, baseline: Artifact, candidates: Sequence[Artifact], inputs: _Given, *, blocks: int, seed: int
    ) -> list[Comparison]:
        """Compare each candidate with the baseline in one interleaved session of fresh processes."""


def compare_fresh(
    baseline: Artifact,
    candidates: Sequence[Artifact],
    inputs: _Given,
    *,
    blocks: int,
    seed: int,
    transport: Transport | None = None,
    contender: Callable[[Worker], Any] | None = None,
) -> list[Comparison]:
    """Run ``export.compare_many`` over a new process for each artifact, with the runtime that the artifact names.

    The runtime must be given: by default a worker opens an artifact for another device with the runtime that verified
    the artifact.

    transport: the connection to another machine; None: this machine.
    contender: returns what is timed of a worker, such as a call with its ends; None: the worker's own ``time``.
    """
    from hnas.export.proof.timing import compare_many
    from hnas.export.remote.transports import local
    from hnas.export.remote.worker import Worker

    with ExitStack() as stack:
        workers = [
            stack.enter_context(Worker(artifact, backend=artifact.backend, transport=transport or local))
            for artifact in (baseline, *candidates)
        ]
        first, *others = workers if contender is None else map(contender, workers)
        return compare_many(first, others, inputs, blocks=blocks, seed=seed, confidence=_CONFIDENCE)


@dataclass
class Clock:
    """A span of seconds that starts when the clock is made; tests replace ``now``."""

    seconds: float
    now: Callable[[], float] = time.monotonic
    start: float = field(init=False)

    def __post_init__(self) -> None:
        self.start = self.now()

    @property
    def spent(self) -> float:
        """Return the seconds since the start."""
        return self.now() - self.start

    @property
    def left(self) -> float:
        """Return the seconds until the span is over; negative after its end."""
        return self.seconds - self.spent


@dataclass(frozen=True)
class RoundCost:
    """The cost of a round in seconds: ``start`` for opening and warm-up, ``block`` for each block."""

    start: float
    block: float

    def affordable(self, seconds: float) -> int:
        """Return how many blocks fit into ``seconds``: a multiple of ``FEWEST_BLOCKS`` up to ``MOST_BLOCKS``, or 0."""
        fitting = int((seconds - self.start) / self.block) if self.block > 0 else MOST_BLOCKS
        return max(0, min(MOST_BLOCKS, fitting - fitting % FEWEST_BLOCKS))


def compare_in_rounds(
    baseline: Artifact,
    candidates: Sequence[Artifact],
    inputs: _Given,
    *,
    processes: int,
    clock: Clock,
    seed: int,
    compare: Compare,
    progress: Progress,
) -> list[Ratio]:
    """Return how many times faster each candidate is than ``baseline``, from up to ``processes`` fresh processes.

    1. A round starts one process of each artifact and runs them interleaved. A candidate that is the baseline itself
       shows the noise floor.
    2. The first round has ``FEWEST_BLOCKS`` blocks and measures the cost of a round. The other rounds share the time
       that is left, up to ``MOST_BLOCKS`` blocks each.
    3. A round that would not end in time, even with the fewest blocks, is not started; the ratio then says that the run
       was cut. The first round always runs.
    """
    rounds: list[list[Comparison]] = []
    blocks, began = FEWEST_BLOCKS, clock.spent
    for index in range(processes):
        if index:  # case 2
            cost = _cost_of(rounds[-1], blocks, clock.spent - began)
            if not cost.affordable(clock.left):  # case 3
                break
            blocks = max(FEWEST_BLOCKS, cost.affordable(clock.left / (processes - index)))
        progress(f"timing, process {index + 1} of {processes}", index / processes)
        began = clock.spent
        rounds.append(compare(baseline, candidates, inputs, blocks=blocks, seed=seed + index))  # case 1
    progress("timed", 1.0)
    return [pool_rounds([one.pairs for one in each], processes, seed) for each in zip(*rounds, strict=True)]


def _cost_of(round_: Sequence[Comparison], blocks: int, elapsed: float) -> RoundCost:
    """Divide the seconds of a round: timed calls are the cost of its blocks, the rest is the cost of its start."""
    timed = min(elapsed, sum(round_[0].a.times) + sum(sum(one.b.times) for one in round_))
    return RoundCost(elapsed - timed, timed / blocks)


def pool_rounds(
    rounds: Sequence[Sequence[tuple[float, float]]], planned: int, seed: int, confidence: float = _CONFIDENCE
) -> Ratio:
    """Return the ratio over several processes with its interval, by the statistics of ``export.Comparison``.

    A round of more than ``FEWEST_BLOCKS`` blocks is reduced to that many figures, each a median of neighbouring blocks.
    So every process has the same weight.

    rounds: for each process, pairs (seconds of the first artifact, seconds of the second).
    planned: how many processes were asked for.
    """
    import numpy as np

    from hnas.export.proof.statistics import ratio_interval

    logs = [np.log([a / b for a, b in pairs]).reshape(FEWEST_BLOCKS, -1) for pairs in rounds]
    ratio, low, high = ratio_interval(np.stack([np.median(one, axis=1) for one in logs]), confidence, seed)
    kept = tuple(tuple((float(a), float(b)) for a, b in pairs) for pairs in rounds)
    return Ratio(ratio, low, high, confidence, kept, planned)


def seeded_inputs(inputs: Sequence[TensorSpec], seed: int) -> Inputs:
    """Return arrays of the shapes and types of ``inputs``: normal values for floats, zeros and ones for the rest."""
    import numpy as np

    rng = np.random.default_rng(seed)
    found = []
    for tensor in inputs:
        floats = tensor.dtype.startswith("float")
        values = rng.standard_normal(tensor.shape) if floats else rng.integers(0, 2, tensor.shape)
        found.append(values.astype(tensor.dtype))
    return tuple(found)
