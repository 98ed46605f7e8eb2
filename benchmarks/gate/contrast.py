"""Compare two artifacts: how much faster one is, and how far their outputs differ.

Call ``compare_artifacts((a, b), shapes, CheckOptions(), progress)``.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from hnas.benchmarks.gate import session
from hnas.benchmarks.gate.check import CheckOptions
from hnas.benchmarks.gate.records import Ratio
from hnas.benchmarks.gate.runtimes import require_runtime

if TYPE_CHECKING:
    from hnas.export.bundle.bundle import Bundle
    from hnas.export.device.artifact import Artifact, TensorSpec

_Read: TypeAlias = "tuple[TensorSpec, ...]"

_SAMPLES = 16
"""Number of seeded inputs on which the outputs are compared."""


@dataclass(frozen=True)
class _Difference:
    """The difference between the outputs of a and b.

    max_error: largest absolute difference; None: not compared.
    sqnr_db: signal-to-noise ratio in dB; None: not compared.
    samples: number of samples.
    reason: why the outputs are not compared.
    """

    max_error: float | None
    sqnr_db: float | None
    samples: int
    reason: str = ""

    def line(self) -> str:
        """Return the difference as one line of text."""
        if self.max_error is None or self.sqnr_db is None:
            return f"not compared: {self.reason}"
        return f"max error {self.max_error:.2e}, SQNR {self.sqnr_db:.1f} dB on {self.samples} seeded inputs"


@dataclass(frozen=True)
class _Side:
    """One of the two artifacts, with the median of its times over all processes in milliseconds."""

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

    @property
    def outcome(self) -> Literal["faster", "slower", "no difference seen"]:
        """Return whether b is faster or slower than a, as far as the interval of their ratio shows."""
        if self.ratio.low > 1:
            return "faster"
        return "slower" if self.ratio.high < 1 else "no difference seen"

    def line(self) -> str:
        """Return the outcome in words, with the speedup of b over a and its interval."""
        words = {"faster": "b is faster", "slower": "b is slower"}.get(self.outcome, self.outcome)
        return f"{words}: speedup of b {self.ratio.line()}"

    def to_json(self) -> dict[str, object]:
        """Return the comparison as plain JSON values, with the raw times."""
        return {"schema": 1, "outcome": self.outcome, **asdict(self)}


def open_side(path: Path) -> tuple[Bundle | None, Artifact]:
    """Return the artifact of a bundle with the bundle, or that of an artifact folder or a bare model file."""
    from hnas.export.bundle.bundle import read_bundle
    from hnas.export.device import artifact

    if (path / "manifest.json").exists():
        bundle = read_bundle(path)
        return bundle, bundle.artifact()
    return None, artifact.Artifact.read(path)


def compare_artifacts(
    paths: tuple[Path, Path],
    shapes: Sequence[tuple[int, ...]],
    options: CheckOptions,
    progress: session.Progress,
) -> Contrast:
    """Time two artifacts interleaved over fresh processes, and compare their outputs where their inputs agree.

    Times are measured in the process of the runtime, so they do not include the pipe to this process.

    paths: bundles, artifact folders or model files.
    shapes: shapes of float32 inputs; empty takes the inputs that the artifacts state.

    Raises:
        ValueError: the two read different batches, or neither states its inputs and ``shapes`` is empty.
        Unavailable: a runtime is missing.

    Example::

        found = compare_artifacts((Path("a"), Path("b.onnx")), [], CheckOptions(), lambda doing, fraction: None)
    """
    clock = session.Clock(options.max_time)
    a, b = (open_side(path)[1] for path in paths)
    for backend in dict.fromkeys((a.backend, b.backend)):
        require_runtime(backend)
    read = agree_on_inputs(a, b, shapes)
    progress("outputs", 0.0)
    difference = _compare_outputs(a, b, read, options.seed)
    (ratio,) = session.compare_in_rounds(
        a,
        (b,),
        lambda each: session.seeded_inputs(read[each.digest != a.digest], options.seed),
        processes=options.processes,
        clock=session.Clock(clock.left),
        seed=options.seed,
        compare=session.compare_fresh,
        progress=progress,
    )
    sides = _side(paths[0], a, ratio, 0), _side(paths[1], b, ratio, 1)
    return Contrast(*sides, ratio, difference, options.seed, clock.spent)


def agree_on_inputs(a: Artifact, b: Artifact, shapes: Sequence[tuple[int, ...]]) -> tuple[_Read, _Read]:
    """Return the inputs that a and b are run on.

    1. ``shapes`` is given: float32 inputs of these shapes for both.
    2. Neither states its inputs, as bare model files: a ValueError that asks for ``shapes``.
    3. One is a bare model file: both take the inputs of the other.
    4. Both state their inputs: each takes its own; where they differ, only times are compared. Different batches are a
       ValueError.
    """
    from hnas.export.device.artifact import TensorSpec

    if shapes:  # case 1
        same = tuple(TensorSpec(f"input{index}", shape, "float32") for index, shape in enumerate(shapes))
        return same, same
    if not a.inputs and not b.inputs:  # case 2
        raise ValueError("bare model files do not state their input shapes; give --input-shape, such as 1x3x224x224")
    read = a.inputs or b.inputs, b.inputs or a.inputs  # cases 3, 4
    if [t.shape[:1] for t in read[0]] != [t.shape[:1] for t in read[1]]:
        raise ValueError(f"the batches differ, nothing to compare: a reads {_shown(read[0])}, b {_shown(read[1])}")
    return read


def _shown(inputs: _Read) -> str:
    """Return the inputs as text, such as 1x3x32x32 float32."""
    return ", ".join(f"{'x'.join(map(str, tensor.shape))} {tensor.dtype}" for tensor in inputs)


def _compare_outputs(a: Artifact, b: Artifact, read: tuple[_Read, _Read], seed: int) -> _Difference:
    """Return the largest error and the signal-to-noise ratio of b's outputs against a's, each from its own process."""
    from hnas.export.proof import verification
    from hnas.export.remote.worker import Worker

    if _shown(read[0]) != _shown(read[1]):
        return _Difference(None, None, 0, f"a reads {_shown(read[0])}, b reads {_shown(read[1])}")
    samples = [session.seeded_inputs(read[0], seed + index) for index in range(_SAMPLES)]
    with Worker(a) as first:
        expected = first.outputs(samples)
    with Worker(b) as second:
        got = second.outputs(samples)
    shapes = [[output.shape for output in outputs[0]] for outputs in (expected, got)]
    if shapes[0] != shapes[1]:
        return _Difference(None, None, 0, f"outputs have shapes {shapes[0]} and {shapes[1]}")
    found = verification.check(expected, got, "fp32")  # its limits are not used: a and b may be two networks
    if not math.isfinite(found.max_error):
        return _Difference(None, None, len(samples), "an output of b is not finite where that of a is")
    return _Difference(found.max_error, found.sqnr_db, len(samples))


def _side(path: Path, artifact: Artifact, ratio: Ratio, column: int) -> _Side:
    """Return one side of the comparison; ``column`` of its pairs of times is 0 for a and 1 for b."""
    times = [pair[column] for pairs in ratio.rounds for pair in pairs]
    return _Side(str(path), artifact.backend, artifact.precision, artifact.threads, statistics.median(times) * 1e3)
