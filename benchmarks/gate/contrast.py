"""Two artifacts side by side: how much faster one is, and how far their outputs lie apart."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from hnas.benchmarks.gate import check, session
from hnas.benchmarks.gate.records import Ratio

if TYPE_CHECKING:
    from hnas.export.device.artifact import Artifact, Tensor

Inputs: TypeAlias = "tuple[Tensor, ...]"

SAMPLES = 16
"""Seeded inputs on which outputs are compared."""


@dataclass(frozen=True)
class _Difference:
    """How far the outputs of b lie from those of a; without figures, ``reason`` says why they cannot be compared."""

    max_error: float | None
    sqnr_db: float | None
    samples: int
    reason: str = ""

    def line(self) -> str:
        """The difference as a person reads it."""
        if self.max_error is None or self.sqnr_db is None:
            return f"not compared: {self.reason}"
        return f"max error {self.max_error:.2e}, SQNR {self.sqnr_db:.1f} dB on {self.samples} seeded inputs"


@dataclass(frozen=True)
class _Side:
    """What one of the two is, and the median of its times over all processes in milliseconds."""

    path: str
    backend: str
    precision: str
    threads: int
    median_ms: float


@dataclass(frozen=True)
class Contrast:
    """The finished comparison of a and b."""

    a: _Side
    b: _Side
    ratio: Ratio
    difference: _Difference
    seed: int
    seconds: float

    def to_json(self) -> dict[str, object]:
        """The comparison as plain JSON values, raw times included."""
        return {"schema": 1, **asdict(self)}


def find(path: Path) -> Artifact:
    """The artifact at ``path``: a bundle's, a folder's own, or a bare .onnx, .xml or .tflite file."""
    from hnas.export.bundle import bundle as zoo
    from hnas.export.device import artifact

    if (path / "manifest.json").exists():
        return zoo.read(path).artifact()
    return artifact.Artifact.read(path)


def contrast(
    paths: tuple[Path, Path],
    shapes: Sequence[tuple[int, ...]],
    options: check.Options,
    progress: session.Progress,
) -> Contrast:
    """Time the two interleaved over fresh processes, and compare their outputs where they read the same inputs.

    The inputs are those that ``agree`` finds. Times are seconds next to the runtime, not over the pipe to its process.
    """
    clock = session.Clock(options.max_time)
    a, b = (find(path) for path in paths)
    for backend in dict.fromkeys((a.backend, b.backend)):
        check.require_runtime(backend)
    read = agree(a, b, shapes)
    progress("outputs", 0.0)
    difference = differ(a, b, read, options.seed)
    (ratio,) = session.run(
        a,
        (b,),
        lambda each: check.seeded_inputs(read[each.digest != a.digest], options.seed),
        processes=options.processes,
        clock=session.Clock(clock.left),
        seed=options.seed,
        compare=session.compare_fresh,
        progress=progress,
    )
    sides = side(paths[0], a, ratio, 0), side(paths[1], b, ratio, 1)
    return Contrast(*sides, ratio, difference, options.seed, clock.spent)


def agree(a: Artifact, b: Artifact, shapes: Sequence[tuple[int, ...]]) -> tuple[Inputs, Inputs]:
    """The inputs that a and b are run on.

    1. ``shapes`` is given: float32 inputs of these shapes for both.
    2. Both state their inputs: each its own; where they differ, only times are compared. Another batch is refused.
    3. One is a bare model file, which states none: the inputs of the other.
    4. Both are bare: a ValueError that asks for ``shapes``.
    """
    from hnas.export.device.artifact import Tensor

    if shapes:
        same = tuple(Tensor(f"input{index}", shape, "float32") for index, shape in enumerate(shapes))
        return same, same
    if not a.inputs and not b.inputs:
        raise ValueError("bare model files do not state their input shapes; give --input-shape, such as 1x3x224x224")
    read = a.inputs or b.inputs, b.inputs or a.inputs
    if [t.shape[:1] for t in read[0]] != [t.shape[:1] for t in read[1]]:
        raise ValueError(f"the batches differ, nothing to compare: a reads {shown(read[0])}, b {shown(read[1])}")
    return read


def shown(inputs: Inputs) -> str:
    """The inputs as text, such as 1x3x32x32 float32."""
    return ", ".join(f"{'x'.join(map(str, tensor.shape))} {tensor.dtype}" for tensor in inputs)


def differ(a: Artifact, b: Artifact, read: tuple[Inputs, Inputs], seed: int) -> _Difference:
    """The largest difference and the signal-to-noise ratio of b's outputs against a's, each from its own process."""
    from hnas.export.proof import verification
    from hnas.export.remote.worker import Worker

    if shown(read[0]) != shown(read[1]):
        return _Difference(None, None, 0, f"a reads {shown(read[0])}, b reads {shown(read[1])}")
    samples = [check.seeded_inputs(read[0], seed + index) for index in range(SAMPLES)]
    with Worker(a) as first:
        expected = first.outputs(samples)
    with Worker(b) as second:
        got = second.outputs(samples)
    shapes = [[output.shape for output in outputs[0]] for outputs in (expected, got)]
    if shapes[0] != shapes[1]:
        return _Difference(None, None, 0, f"outputs have shapes {shapes[0]} and {shapes[1]}")
    found = verification.check(expected, got, "fp32")  # its limits are not used: these are two networks, not one
    if not math.isfinite(found.max_error):
        return _Difference(None, None, len(samples), "an output of b is not finite where that of a is")
    return _Difference(found.max_error, found.sqnr_db, len(samples))


def side(path: Path, artifact: Artifact, ratio: Ratio, turn: int) -> _Side:
    """One side of the finished comparison; ``turn`` is 0 for a and 1 for b."""
    times = [pair[turn] for pairs in ratio.rounds for pair in pairs]
    return _Side(str(path), artifact.backend, artifact.precision, artifact.threads, statistics.median(times) * 1e3)
