"""Verify an artifact at several sizes of its dynamic axis: ``check_sizes(evidence, artifact)``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnas.export import backends
from hnas.export.device.errors import Unfaithful
from hnas.export.graph.sizes import sample_of_size
from hnas.export.proof.verification import check
from hnas.export.remote.worker import Worker

if TYPE_CHECKING:
    from hnas.export.compiling.evidence import EvidenceSet
    from hnas.export.device.artifact import Artifact

FIXED = ("tflite",)  # backends whose files have fixed sizes


def require_open(backend: str) -> None:
    """Raise ValueError for a backend whose files have fixed sizes."""
    if backend in FIXED:
        others = ", ".join(name for name in backends.names() if name not in FIXED)
        raise ValueError(f"{backend} takes no dynamic size; {others} do, or compile one artifact for each size")


def check_sizes(evidence: EvidenceSet, artifact: Artifact) -> list[int]:
    """Compare the artifact with its network at the smallest size and at two others. Return the sizes.

    The samples of ``evidence`` are joined to each size, so that rows differ.

    Raises:
        Unfaithful: the artifact is wrong at a size; the message names the size.
    """
    source, size = evidence.source, evidence.source.program.dynamic
    if size is None:
        return []
    samples = [source.examples, *evidence.samples]
    middle = 3 if size.high is None else (size.low + size.high) // 2
    counts = sorted({size.low, middle, size.high or 5})
    with Worker(artifact) as worker:
        for count in counts:
            sample = sample_of_size(samples, size, count)
            found = check(source.outputs([sample]), worker.outputs([sample]), artifact.precision)
            if not found.passed:
                raise Unfaithful(f"{artifact.backend} is wrong for a {size.name} of {count}: {found.line()}")
    return counts
