"""Re-prove a bundle on the machine at hand: read it, time it against its baseline, count its hits, judge.

No torch is imported; what runs the networks is the worker of ``export``, one process a session.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hnas.benchmarks.gate import session
from hnas.benchmarks.gate import verdict as gate
from hnas.benchmarks.gate.records import Accuracy, Claim, Evidence, Ratio, Report

if TYPE_CHECKING:
    import numpy as np

    from hnas.data.images import Preprocessing
    from hnas.export.bundle.manifest import Manifest
    from hnas.export.device.artifact import Artifact, Tensor
    from hnas.export.device.machine import Machine
    from hnas.export.remote.transports import Transport

_TIMING_SHARE = 0.8
"""The part of the time that timing may take where images are there to be counted afterwards."""

CHUNK = 100
BATCH = 1024
"""More images at once are not counted: their number is the bundle's word, and each takes memory."""


@dataclass(frozen=True)
class Options:
    """What was asked of one check; ``max_time`` in seconds, ``data`` a folder where the package lacks the images.

    ``host`` is the address of a device, on which everything runs then.
    """

    min_speedup: float | None = None
    max_time: float = 60.0
    processes: int = 5
    here: bool = False
    data: Path | None = None
    seed: int = 0
    host: str | None = None


@dataclass(frozen=True)
class Images:
    """What an accuracy is counted on: uint8 [N, H, W, C], labels [N], and what makes them float32 [n, C, h, w].

    They are prepared a lot at a time: how large they become is the bundle's word, and all of them may fill no memory.
    """

    pixels: np.ndarray
    labels: np.ndarray
    prepare: Preprocessing


def check(path: Path, options: Options, progress: session.Progress) -> Report:
    """The report on the bundle at ``path``; ValueError or FileNotFoundError in one line for a bundle that is no good.

    1. The claim is measured, or ``here`` or ``host`` say where the device is: the baseline is timed against itself and
       against the artifact, then the artifact's hits are counted. ``Unavailable`` if its runtime is missing.
    2. The claim is predicted: only the hits are counted, by the runtime that verified the artifact, if that is here.
    """
    from hnas.export.bundle import bundle as zoo

    clock = session.Clock(options.max_time)
    bundle = zoo.read(path)
    artifact, baseline = bundle.artifact(), bundle.baseline()
    if not artifact.inputs:
        raise ValueError(f"{path}: its artifact does not state its inputs, so nothing can be run")
    claim = claim_of(bundle.manifest)
    timed: tuple[Ratio, Ratio] | None = None
    transport, machine, found = place(options.host, artifact.backend)
    here = options.here or (options.host is not None and claim.kind == "predicted")
    if claim.kind == "measured" or here:
        if options.host is None:
            require_runtime(artifact.backend)
        images = find_images(bundle.manifest, options.data)
        if baseline is not None and gate.threshold(claim, options.min_speedup) is not None:
            span = clock.left * (_TIMING_SHARE if isinstance(images, Images) else 1.0)
            timed = _time_both(baseline, artifact, span, options, progress, transport)
        accuracy = count(artifact, artifact.backend, images, claim.images, clock, progress, transport)
    else:
        runtime = str(artifact.notes.get("verify_with") or artifact.backend)
        images = missing(runtime) or find_images(bundle.manifest, options.data)
        accuracy = count(artifact, runtime, images, claim.images, clock, progress)
    noise, speed = timed or (None, None)
    if options.host is not None and accuracy.value is not None:
        accuracy = replace(accuracy, versions=found)
    evidence = Evidence(claim, machine.processor, here, options.min_speedup, noise, speed, accuracy)
    return Report(
        bundle=str(path),
        artifact_digest=artifact.digest,
        evidence=evidence,
        verdict=gate.judge(evidence),
        seed=options.seed,
        seconds=clock.spent,
        machine=asdict(machine),
        versions=found,
    )


def claim_of(manifest: Manifest) -> Claim:
    """The claim that a manifest makes, as the gate wants it."""
    speedup, accuracy = manifest.speedup, manifest.accuracy
    return Claim(
        name=manifest.name,
        target=manifest.target,
        backend=manifest.backend,
        precision=manifest.precision,
        cpu=manifest.machine.processor,
        kind=speedup.kind if speedup else manifest.latency.kind,
        speedup_value=speedup.value if speedup else None,
        speedup=(speedup.low, speedup.high) if speedup else None,
        against=speedup.against if speedup else "",
        has_baseline=manifest.baseline is not None,
        accuracy=accuracy.artifact if accuracy else None,
        images=accuracy.n if accuracy else 0,
        versions=manifest.versions,
    )


def place(host: str | None, backend: str) -> tuple[Transport | None, Machine, dict[str, str]]:
    """The way to ``host``, what that machine is, and its versions of ``backend``; None is this machine, and no way."""
    from hnas.export.device.machine import Machine
    from hnas.export.remote.transports import connect
    from hnas.export.remote.worker import describe

    if host is None:
        return None, Machine.here(), versions(backend)
    transport = connect(host)
    return transport, *describe(backend, transport)


def missing(backend: str) -> str | None:
    """Why the runtime of ``backend`` cannot run here, with the line that installs it; None where it can."""
    from hnas.export import backends

    return backends.load(backend).missing()


def require_runtime(backend: str) -> None:
    """``Unavailable``, with the line that installs it, unless the runtime of ``backend`` can run here."""
    from hnas.export.device.errors import Unavailable

    reason = missing(backend)
    if reason:
        raise Unavailable(reason)


def _time_both(
    baseline: Artifact,
    artifact: Artifact,
    seconds: float,
    options: Options,
    progress: session.Progress,
    transport: Transport | None = None,
) -> tuple[Ratio, Ratio]:
    """The baseline against itself, and the artifact against the baseline: this machine's noise, and the speedup.

    Both come from the same blocks, so the noise is that of the very moment in which the speedup was measured.
    """
    noise, speed = session.run(
        baseline,
        (baseline, artifact),
        lambda each: seeded_inputs(each.inputs, options.seed),
        processes=options.processes,
        clock=session.Clock(seconds),
        seed=options.seed,
        compare=partial(session.compare_fresh, transport=transport) if transport else session.compare_fresh,
        progress=progress,
    )
    return noise, speed


def seeded_inputs(inputs: Sequence[Tensor], seed: int) -> session.Inputs:
    """Arrays of the shapes and types of ``inputs``: normal values for floats, zeros and ones for the rest."""
    import numpy as np

    rng = np.random.default_rng(seed)
    found = []
    for tensor in inputs:
        floats = tensor.dtype.startswith("float")
        values = rng.standard_normal(tensor.shape) if floats else rng.integers(0, 2, tensor.shape)
        found.append(values.astype(tensor.dtype))
    return tuple(found)


def find_images(manifest: Manifest, data: Path | None) -> Images | str:
    """The first ``n`` images of the split that the claim was made on, or the reason why there are none.

    1. The bundle claims no accuracy, or says nothing of its preprocessing: no images.
    2. ``data`` is given: that folder, where anything wrong is a ValueError of the reader.
    3. Otherwise the images that the package ships, if they are the bundle's.
    4. The images found have another digest than the bundle's: they prove nothing about it.
    """
    from hnas.data import images

    claimed, stated = manifest.accuracy, manifest.data
    if claimed is None or stated is None or manifest.input is None or manifest.input.preprocessing is None:
        return "the bundle does not say which images its accuracy was counted on, or how they are prepared"
    prepare = images.Preprocessing.from_json(manifest.input.preprocessing)
    try:
        found = images.load(data, claimed.split, prepare.base, len(prepare.mean))
    except (FileNotFoundError, ValueError):
        if data is not None:
            raise
        return f"the package has no {claimed.split} images; --data DIR says where those of {stated.name!r} are"
    if found.digest != stated.digests.get(claimed.split):
        where, hint = (data, "") if data is not None else ("the package", "; --data DIR says where they are")
        return f"the {claimed.split} images of {where} are not the claim's{hint}"
    return Images(found.images[: claimed.n], found.labels[: claimed.n], prepare)


def count(
    artifact: Artifact,
    runtime: str,
    images: Images | str,
    planned: int,
    clock: session.Clock,
    progress: session.Progress,
    transport: Transport | None = None,
) -> Accuracy:
    """Top-1 of the artifact file over ``images`` in one worker, until time runs out; one chunk is always counted."""
    from hnas.export.remote.transports import local
    from hnas.export.remote.worker import Worker

    if isinstance(images, str):
        return Accuracy(None, 0, planned, images)
    total, hits, seen = len(images.labels), 0, 0
    if total < planned:
        return Accuracy(None, 0, planned, f"the split has {total} images, the claim was made on {planned}")
    if reason := _unfit(artifact, (images.prepare.channels, *images.prepare.size)):
        return Accuracy(None, 0, planned, reason)
    with Worker(artifact, backend=runtime, transport=transport or local) as worker:
        while seen < total and (seen == 0 or clock.left > 0):
            stop = min(seen + CHUNK, total)
            lot = Images(images.pixels[seen:stop], images.labels[seen:stop], images.prepare)
            hits += _hits_of(worker.outputs, lot, artifact.inputs[0].shape[0])
            seen = stop
            progress(f"accuracy, {seen} of {total} images", seen / total)
    return Accuracy(hits / seen, seen, planned, versions=versions(runtime))


def _unfit(artifact: Artifact, image: tuple[int, ...]) -> str | None:
    """Why the artifact cannot name the classes of images [C, H, W], or None: its record is not to be trusted."""
    read = artifact.inputs[0].shape
    if not 1 <= next(iter(read), 0) <= BATCH:
        return f"the artifact reads no batch of 1 to {BATCH} images"
    if read[1:] != image:
        return f"the artifact reads {list(read[1:])}, its preprocessing makes {list(image)}"
    gives = [list(tensor.shape) for tensor in artifact.outputs]
    if not gives or len(gives[0]) != 2 or gives[0][0] != read[0] or not gives[0][1]:
        return f"the artifact gives {gives}, no scores [{read[0]}, classes]"
    return None


def _hits_of(outputs: Callable[[Iterable[session.Inputs]], list[session.Inputs]], images: Images, batch: int) -> int:
    """How many labels the network names; it takes ``batch`` images at once, so the last lot is padded."""
    import numpy as np

    padded = np.concatenate([images.pixels, np.repeat(images.pixels[-1:], -len(images.pixels) % batch, axis=0)])
    lots = ((images.prepare(padded[start : start + batch]),) for start in range(0, len(padded), batch))
    scores = np.concatenate([lot[0] for lot in outputs(lots)])[: len(images.labels)]
    return int((scores.argmax(axis=1) == images.labels).sum())


def versions(backend: str) -> dict[str, str]:
    """What the runtime says of itself; empty where it is not installed, as with a claim for another device."""
    from hnas.export import backends

    return {} if missing(backend) else dict(backends.load(backend).versions())
