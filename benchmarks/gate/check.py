"""Check the claim of a bundle on this machine or on ``--host``: time the artifact and its baseline, count hits, judge.

Call ``check_claim(path, CheckOptions(), progress)``. This module imports no torch: a worker process runs the networks.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hnas.benchmarks.gate import session
from hnas.benchmarks.gate import verdict as gate
from hnas.benchmarks.gate.accuracy import LabelledSamples, count_hits, find_samples
from hnas.benchmarks.gate.records import BundleClaim, CountedAccuracy, Evidence, GateReport, Ratio
from hnas.benchmarks.gate.runtimes import missing_runtime, require_runtime, runtime_versions

if TYPE_CHECKING:
    from hnas.export.bundle.bundle import Bundle
    from hnas.export.bundle.manifest import Manifest
    from hnas.export.device.artifact import Artifact
    from hnas.export.device.machine import Machine
    from hnas.export.remote.transports import Transport

_TIMING_SHARE = 0.8
"""The share of the time that timing may take where images are counted afterwards."""


@dataclass(frozen=True)
class CheckOptions:
    """The options of one check.

    min_speedup: the speedup to reach; None: the threshold follows from the claim.
    max_time: time limit of the whole check, in seconds.
    processes: number of fresh processes for each artifact.
    here: judge on this machine, even if the claim is for another CPU model or a predicted one.
    data: folder of the images; None: the images that are shipped with hnas.
    seed: seed of the inputs, the order and the bootstrap.
    host: address of the device that runs the artifacts; None is this machine.
    """

    min_speedup: float | None = None
    max_time: float = 60.0
    processes: int = 5
    here: bool = False
    data: Path | None = None
    seed: int = 0
    host: str | None = None


@dataclass(frozen=True)
class _Place:
    """The machine that runs the artifacts: how to reach it (None: this machine) and its runtime versions."""

    transport: Transport | None
    machine: Machine
    versions: dict[str, str]


def check_claim(path: Path, options: CheckOptions, progress: session.Progress) -> GateReport:
    """Return the report on the bundle at ``path``.

    1. The claim is measured, or ``here`` or ``host`` names the device. Time the baseline against itself and against the
       artifact, then count the hits of the artifact.
    2. The claim is predicted. Count only the hits, with the runtime that verified the artifact, if it is installed.

    Raises:
        ValueError, FileNotFoundError: the bundle is broken; the message is one line.
        Unavailable: case 1, and the runtime of the artifact is missing.

    Example::

        report = check_claim(Path("bundle"), CheckOptions(max_time=30.0), lambda doing, fraction: None)
    """
    from hnas.export.bundle.bundle import read_bundle
    from hnas.export.proof.load import Watch

    clock = session.Clock(options.max_time)
    bundle = read_bundle(path)
    artifact = bundle.artifact()
    if not artifact.inputs:
        raise ValueError(f"{path}: its artifact does not state its inputs, so nothing can be run")
    claim = claim_of(bundle.manifest)
    place = _find_place(options.host, artifact.backend)
    here = options.here or (options.host is not None and claim.kind == "predicted")
    watch = Watch() if place.transport is None else None
    if claim.kind == "measured" or here:  # case 1
        timed, accuracy = _measure_claim(bundle, claim, place, options, clock, progress)
    else:  # case 2
        timed, accuracy = None, _count_elsewhere(bundle, claim, options, clock, progress)
    if options.host is not None and accuracy.value is not None:
        accuracy = replace(accuracy, versions=place.versions)
    noise, speed = timed or (None, None)
    evidence = Evidence(claim, place.machine.processor, here, options.min_speedup, noise, speed, accuracy)
    return GateReport(
        bundle=str(path),
        artifact_digest=artifact.digest,
        evidence=evidence,
        verdict=gate.judge_evidence(evidence),
        seed=options.seed,
        seconds=clock.spent,
        machine=asdict(place.machine),
        versions=place.versions,
        load=watch.load() if watch and speed else None,
    )


def _measure_claim(
    bundle: Bundle,
    claim: BundleClaim,
    place: _Place,
    options: CheckOptions,
    clock: session.Clock,
    progress: session.Progress,
) -> tuple[tuple[Ratio, Ratio] | None, CountedAccuracy]:
    """Time the artifact if a speedup is required and a baseline exists, then count its hits."""
    artifact, baseline = bundle.artifact(), bundle.baseline()
    if place.transport is None:
        require_runtime(artifact.backend)
    samples = find_samples(bundle.manifest, options.data)
    timed = None
    if baseline is not None and gate.threshold(claim, options.min_speedup) is not None:
        span = clock.left * (_TIMING_SHARE if isinstance(samples, LabelledSamples) else 1.0)
        timed = _time_both(baseline, artifact, span, options, progress, place.transport)
    accuracy = count_hits(artifact, artifact.backend, samples, claim.images, clock, progress, place.transport)
    return timed, accuracy


def _count_elsewhere(
    bundle: Bundle, claim: BundleClaim, options: CheckOptions, clock: session.Clock, progress: session.Progress
) -> CountedAccuracy:
    """Count the hits on this machine, with the runtime that verified the artifact."""
    artifact = bundle.artifact()
    runtime = str(artifact.notes.get("verify_with") or artifact.backend)
    samples = missing_runtime(runtime) or find_samples(bundle.manifest, options.data)
    return count_hits(artifact, runtime, samples, claim.images, clock, progress)


def claim_of(manifest: Manifest) -> BundleClaim:
    """Return the claim that a manifest makes."""
    speedup, accuracy = manifest.speedup, manifest.accuracy
    return BundleClaim(
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
        load=manifest.load.line() if manifest.load else "",
    )


def _find_place(host: str | None, backend: str) -> _Place:
    """Connect to ``host`` and describe it; None is this machine."""
    from hnas.export.device.machine import Machine
    from hnas.export.remote.transports import connect
    from hnas.export.remote.worker import describe_machine

    if host is None:
        return _Place(None, Machine.here(), runtime_versions(backend))
    transport = connect(host)
    return _Place(transport, *describe_machine(backend, transport))


def _time_both(
    baseline: Artifact,
    artifact: Artifact,
    seconds: float,
    options: CheckOptions,
    progress: session.Progress,
    transport: Transport | None = None,
) -> tuple[Ratio, Ratio]:
    """Return two ratios: the baseline against itself (the noise floor), and the artifact against the baseline.

    Both come from the same blocks, so the noise is measured at the same time as the speedup.
    """
    noise, speed = session.compare_in_rounds(
        baseline,
        (baseline, artifact),
        lambda each: session.seeded_inputs(each.inputs, options.seed),
        processes=options.processes,
        clock=session.Clock(seconds),
        seed=options.seed,
        compare=partial(session.compare_fresh, transport=transport) if transport else session.compare_fresh,
        progress=progress,
    )
    return noise, speed
