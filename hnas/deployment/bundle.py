"""Write the folder that a user keeps: artifact, baseline, and the manifest that describes both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from hnas.deployment.build import Built
from hnas.deployment.judge import wilson_interval
from hnas.deployment.result import Result
from hnas.deployment.source import SupernetSource
from hnas.deployment.table import speedup_of, summarise_deployment
from hnas.export.bundle.bundle import Bundle, read_bundle, write_bundle
from hnas.export.bundle.manifest import Accuracy, Data, Input, Latency, Manifest, Prediction, SpaceRecord
from hnas.export.device.artifact import Artifact

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Deployment:
    """The outcome of a deployment and the bundle that it wrote.

    table: the final table as plain values.

    For a user's own network, the files of the artifacts in ``result`` are removed. Use ``bundle.artifact()`` instead.

    Example:
        found = hnas.deploy("openvino-cpu", max_latency="5ms")
        found.bundle.path, found.bundle.manifest.latency
    """

    result: Result
    bundle: Bundle
    table: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the table and the Pareto front as JSON, as the command prints them with ``--json``."""
        return dict(self.table)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Plot accuracy over latency: the Pareto front of the search and each artifact. Needs the extra "plot".

        ax: the axes of matplotlib to draw on; None: those of a new figure.

        Raises:
            Unavailable: matplotlib is not installed.
        """
        from hnas.deployment.plotting import plot_deployment

        return plot_deployment(self.table, ax)


def bundle_result(result: Result, manifest: Manifest) -> Deployment:
    """Write the bundle to ``out/bundle``, completely or not at all. A bundle that is already there is kept.

    Raises:
        ValueError: the bundle that is already there holds another artifact.
    """
    folder, artifact = result.plan.out / "bundle", result.kept.built.artifact
    if folder.exists():
        finished = read_bundle(folder)
        if finished.artifact().digest != artifact.digest:
            raise ValueError(f"{finished.path} holds another artifact than this run ends with; choose another --out")
        return Deployment(result, finished, summarise_deployment(result, finished))
    baseline = None if manifest.speedup is None else result.baseline.built.artifact
    written = write_bundle(folder, manifest, artifact=artifact, baseline=baseline)
    return Deployment(result, written, summarise_deployment(result, written))


def describe_network(result: Result, command: str, *, seed: int) -> Manifest:
    """Return the manifest of a user's own network, whose task is not known. It has an accuracy if there are labels.

    command: the command that repeats the deployment.
    seed: seed of random weights and random inputs.
    """
    plan, network, built = result.plan, result.proof.network, result.kept.built
    artifact = built.artifact
    source = artifact.notes.get("source")
    first, *others = artifact.inputs
    layout = "NCHW" if len(first.shape) == 4 else "the module's own"
    return Manifest(
        name=f"{network.name}-{plan.device.name}-{built.label}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        task="a task of its own",
        target=plan.device.name,
        backend=artifact.backend,
        precision=artifact.precision,
        arch=None,
        space=None,
        labels=(),
        input=None if others else Input(first.shape, first.dtype, layout),
        accuracy=_accuracy_of(result),
        verification=built.check,
        latency=_latency_of(result, artifact),
        speedup=speedup_of(result.kept, result.baseline, result.proof.predicted[artifact.precision]),
        machine=plan.machine,
        load=None if result.kept.comparison is None else result.kept.comparison.load,
        versions={**artifact.versions, **plan.versions},
        seeds={"inputs" if source else "torch": seed},
        data=None,
        reproduce=command,
        build=_build_note(built),
        slowdown=result.proof.slowdown,
        mixed=result.proof.mixed,
        source=source if isinstance(source, dict) else None,
    )


def describe_subnet(result: Result, source: SupernetSource, command: str) -> Manifest:
    """Return the manifest of a searched subnet: architecture, space, task, labels and accuracy are known."""
    plan, built, arch = result.plan, result.kept.built, result.arch
    assert arch is not None
    (first,) = built.artifact.inputs
    space, task = source.supernet.space.to_json(), source.task
    preprocessing = task.preprocessing.at((first.shape[2], first.shape[3]))
    return replace(
        describe_network(result, command, seed=plan.seed),
        name=f"{task.name}-{plan.device.name}-{built.label}-{arch.digest}",
        task="image-classification",
        arch=arch.to_json(),
        space=SpaceRecord(space["name"], space["arguments"], source.digest),
        labels=task.classes,
        input=Input(first.shape, first.dtype, "NCHW", preprocessing.to_json()),
        seeds={"search": plan.seed, "supernet": source.supernet.seed},
        data=Data(task.name, source.digests),
        licence=source.licence,
        base_model=source.base_model,
    )


def _accuracy_of(result: Result) -> Accuracy | None:
    """Return the accuracy on the labelled images of the test split; None if there are none."""
    network, built = result.proof.network, result.kept.built
    if not network.tested:
        return None
    return Accuracy(
        metric="top-1",
        n=network.tested,
        split="test",
        subnet_fp32=network.accuracy["test"],
        artifact=built.accuracy["test"],
        interval=wilson_interval(built.accuracy["test"], network.tested),
        baseline=result.baseline.built.accuracy["test"],
    )


def _latency_of(result: Result, artifact: Artifact) -> Latency:
    """Return the measured latency, or the predicted latency if nothing was measured."""
    comparison, predicted = result.kept.comparison, result.proof.predicted[artifact.precision]
    power = result.plan.device.power
    forecast = Prediction(predicted.value, predicted.low, predicted.high, basis=predicted.basis, power=power)
    if comparison is None:
        shape = artifact.inputs[0].shape
        return Latency(
            kind="predicted",
            value=predicted.value,
            low=predicted.low,
            high=predicted.high,
            batch=shape[0] if shape else 1,
            threads=artifact.threads,
            n=0,
            confidence=None,
            predicted=forecast,
        )
    found = comparison.b
    low, high = comparison.interval_ms("b")
    return Latency(
        kind="measured",
        value=found.median_ms,
        low=low,
        high=high,
        batch=found.batch,
        threads=found.threads,
        n=len(found.times),
        confidence=comparison.confidence,
        p90=found.p90_ms,
        p99=found.p99_ms,
        predicted=forecast,
    )


def _build_note(built: Built) -> dict[str, Any] | None:
    """Return how a device builds its own engine from the artifact (TensorRT), and measurements of such a build."""
    note = built.artifact.notes.get("build")
    if not isinstance(note, dict):
        return None
    return {**note, "engine": dict(built.engine)} if built.engine else dict(note)
