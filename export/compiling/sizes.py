"""Verify an artifact at several sizes of its dynamic axis: ``check_sizes(source, artifact)``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnas.export import backends
from hnas.export.device.errors import Unfaithful
from hnas.export.onnx.source import OnnxSource
from hnas.export.proof.verification import check
from hnas.export.remote.worker import Worker

if TYPE_CHECKING:
    from hnas.export.compiling.originals import Captured
    from hnas.export.device.artifact import Artifact

FIXED = ("tflite",)  # backends whose files have fixed sizes


def require_open(backend: str) -> None:
    """Raise ValueError for a backend whose files have fixed sizes."""
    if backend in FIXED:
        others = ", ".join(name for name in backends.names() if name not in FIXED)
        raise ValueError(f"{backend} takes no dynamic size; {others} do, or compile one artifact for each size")


def check_sizes(source: Captured, artifact: Artifact) -> None:
    """Compare the artifact with its network at the smallest size and at two others, one size at a time.

    Raises:
        Unfaithful: the artifact is wrong at a size; the message names the size.
    """
    program = source.program
    if isinstance(program, OnnxSource) or program.dynamic is None:
        return
    import torch

    from hnas.export.graph.dynamic import with_size
    from hnas.export.graph.fusion import noise_tensors

    size = program.dynamic
    examples = tuple(map(torch.from_numpy, source.examples))
    with Worker(artifact) as worker:
        for count in sorted(
            {size.low, 3, 5} if size.high is None else {size.low, (size.low + size.high) // 2, size.high}
        ):
            drawn = noise_tensors(with_size(examples, size, count), seed=count)
            sample = tuple(value.numpy() for value in drawn)
            found = check(source.outputs([sample]), worker.outputs([sample]), artifact.precision)
            if not found.passed:
                raise Unfaithful(f"{artifact.backend} is wrong for a {size.name} of {count}: {found.line()}")
