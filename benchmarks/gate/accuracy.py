"""Count how many labels of a bundle's images its artifact file predicts: ``count_hits(artifact, runtime, ...)``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hnas.benchmarks.gate import session
from hnas.benchmarks.gate.records import CountedAccuracy
from hnas.benchmarks.gate.runtimes import runtime_versions

if TYPE_CHECKING:
    import numpy as np

    from hnas.data.images import Preprocessing
    from hnas.export.bundle.manifest import Manifest
    from hnas.export.device.artifact import Artifact
    from hnas.export.remote.transports import Transport

CHUNK = 100
_BATCH = 1024
"""The largest batch size of an artifact. A bundle is not trusted, and a larger batch could use up the memory."""


@dataclass(frozen=True)
class LabelledSamples:
    """Images with labels, on which an accuracy is counted.

    Images are prepared in chunks, because all prepared images together may not fit into memory.

    pixels: uint8 [N, H, W, C].
    labels: [N].
    prepare: turns pixels into float32 [n, C, h, w].
    """

    pixels: np.ndarray
    labels: np.ndarray
    prepare: Preprocessing


def find_samples(manifest: Manifest, data: Path | None) -> LabelledSamples | str:
    """Return the first ``n`` images of the split that the claim was made on, or the reason why there are none.

    1. The bundle claims no accuracy, or does not describe its preprocessing: no images.
    2. ``data`` is given: read that folder. Errors of the reader are raised.
    3. Otherwise: the images that the package ships, if they are the images of the bundle.
    4. The digest of the images differs from the digest in the bundle: no images.
    """
    from hnas.data import images

    claimed, stated = manifest.accuracy, manifest.data
    if claimed is None or stated is None or manifest.input is None or manifest.input.preprocessing is None:  # case 1
        return "the bundle does not say which images its accuracy was counted on, or how they are prepared"
    prepare = images.Preprocessing.from_json(manifest.input.preprocessing)
    try:
        found = images.load_split(data, claimed.split, prepare.base, len(prepare.mean))
    except (FileNotFoundError, ValueError):
        if data is not None:  # case 2
            raise
        # case 3
        return f"the package has no {claimed.split} images; --data DIR says where those of {stated.name!r} are"
    if found.digest != stated.digests.get(claimed.split):  # case 4
        where, hint = (data, "") if data is not None else ("the package", "; --data DIR says where they are")
        return f"the {claimed.split} images of {where} are not the claim's{hint}"
    return LabelledSamples(found.images[: claimed.n], found.labels[: claimed.n], prepare)


def count_hits(
    artifact: Artifact,
    runtime: str,
    samples: LabelledSamples | str,
    planned: int,
    clock: session.Clock,
    progress: session.Progress,
    transport: Transport | None = None,
) -> CountedAccuracy:
    """Count the top-1 hits of the artifact file in one worker until time runs out; one chunk is always counted."""
    from hnas.export.remote.transports import local
    from hnas.export.remote.worker import Worker

    if isinstance(samples, str):
        return CountedAccuracy(None, 0, planned, samples)
    total, hits, seen = len(samples.labels), 0, 0
    if total < planned:
        return CountedAccuracy(None, 0, planned, f"the split has {total} images, the claim was made on {planned}")
    if reason := _unfit(artifact, (samples.prepare.channels, *samples.prepare.size)):
        return CountedAccuracy(None, 0, planned, reason)
    with Worker(artifact, backend=runtime, transport=transport or local) as worker:
        while seen < total and (seen == 0 or clock.left > 0):
            stop = min(seen + CHUNK, total)
            chunk = LabelledSamples(samples.pixels[seen:stop], samples.labels[seen:stop], samples.prepare)
            hits += _hits_of(worker.outputs, chunk, artifact.inputs[0].shape[0])
            seen = stop
            progress(f"accuracy, {seen} of {total} images", seen / total)
    return CountedAccuracy(hits / seen, seen, planned, versions=runtime_versions(runtime))


def stated_as(artifact: Artifact, other: Artifact) -> Artifact:
    """Return the artifact; a bare model file, which states no inputs, takes inputs and outputs of ``other``."""
    return artifact if artifact.inputs else replace(artifact, inputs=other.inputs, outputs=other.outputs)


def _unfit(artifact: Artifact, image: tuple[int, ...]) -> str | None:
    """Return why the artifact cannot classify images [C, H, W], or None; the record of an artifact is not trusted."""
    if len(artifact.inputs) != 1:
        return f"the artifact states {len(artifact.inputs)} inputs, expected one of images"
    read = artifact.inputs[0].shape
    if not 1 <= next(iter(read), 0) <= _BATCH:
        return f"the artifact reads no batch of 1 to {_BATCH} images"
    if read[1:] != image:
        return f"the artifact reads {list(read[1:])}, its preprocessing makes {list(image)}"
    gives = [list(tensor.shape) for tensor in artifact.outputs]
    if not gives or len(gives[0]) != 2 or gives[0][0] != read[0] or not gives[0][1]:
        return f"the artifact gives {gives}, no scores [{read[0]}, classes]"
    return None


def _hits_of(
    outputs: Callable[[Iterable[session.Inputs]], list[session.Inputs]], samples: LabelledSamples, batch: int
) -> int:
    """Count the labels that the network predicts; the last batch is padded to ``batch`` images.

    Raises:
        ExportError: the network gives no scores [batch, classes], whatever its record states.
    """
    import numpy as np

    from hnas.export.device.errors import ExportError

    padded = np.concatenate([samples.pixels, np.repeat(samples.pixels[-1:], -len(samples.pixels) % batch, axis=0)])
    batches = ((samples.prepare(padded[start : start + batch]),) for start in range(0, len(padded), batch))
    given = [each[0] for each in outputs(batches)]
    odd = next((list(each.shape) for each in given if each.ndim != 2 or len(each) != batch or not each.size), None)
    if odd is not None:
        raise ExportError(f"the artifact gives {odd}, no scores [{batch}, classes]")
    scores = np.concatenate(given)[: len(samples.labels)]
    return int((scores.argmax(axis=1) == samples.labels).sum())
