"""From what was measured to the folder that a user keeps: manifest, model card, command to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from hnas.cost import Price
from hnas.deployment.build import Built, Refused, Row, interval
from hnas.deployment.plan import Plan
from hnas.deployment.source import Source
from hnas.export.bundle.bundle import Bundle, read_bundle, write_bundle
from hnas.export.bundle.manifest import (
    Accuracy,
    Data,
    Input,
    Latency,
    Manifest,
    Mixed,
    Prediction,
    SpaceRecord,
    Speedup,
)
from hnas.export.device.artifact import Artifact
from hnas.export.proof.measurement import Comparison
from hnas.export.proof.slowdown import Slowdown
from hnas.pareto import Candidate
from hnas.space import Arch

AGAINST = "the largest subnet in fp32 on the same backend"


@dataclass(frozen=True)
class Result:
    """The chosen subnet, the artifact of each precision tried, and what they were compared with.

    best: index into ``rows``; refused: precisions that gave no artifact; predicted: by precision, and "baseline";
    fp32_accuracy: of the subnet in eager fp32, by split; front: what the search found, cheapest first; slowdown, mixed:
    as the manifest has them.
    """

    plan: Plan
    arch: Arch
    best: int
    baseline: Built
    rows: tuple[Row, ...]
    refused: tuple[Refused, ...]
    predicted: Mapping[str, Price]
    fp32_accuracy: Mapping[str, float]
    front: tuple[Candidate, ...]
    slowdown: Slowdown | None = None
    mixed: Mixed | None = None

    @property
    def kept(self) -> Row:
        """The row whose artifact is in the bundle."""
        return self.rows[self.best]


def write(result: Result, source: Source, command: str) -> Bundle:
    """The bundle of ``result`` in ``out/bundle``; whole or not at all. One that an earlier run finished stays."""
    plan, kept = result.plan, result.kept
    artifact = kept.built.artifact
    if (plan.out / "bundle").exists():
        finished = read_bundle(plan.out / "bundle")
        if finished.artifact().digest != artifact.digest:
            raise ValueError(f"{finished.path} holds another artifact than this run ends with; choose another --out")
        return finished
    shape = artifact.inputs[0].shape
    preprocessing = source.task.preprocessing.at((shape[2], shape[3]))
    tested = len(source.task.splits["test"])
    space = source.supernet.space.to_json()
    manifest = Manifest(
        name=f"{source.task.name}-{plan.device.name}-{kept.built.label}-{result.arch.digest}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        task="image-classification",
        target=plan.device.name,
        backend=artifact.backend,
        precision=artifact.precision,
        arch=result.arch.to_json(),
        space=SpaceRecord(space["name"], space["arguments"], source.digest),
        labels=source.task.classes,
        input=Input(shape, artifact.inputs[0].dtype, "NCHW", preprocessing.to_json()),
        accuracy=Accuracy(
            metric="top-1",
            n=tested,
            split="test",
            subnet_fp32=result.fp32_accuracy["test"],
            artifact=kept.built.accuracy["test"],
            interval=interval(kept.built.accuracy["test"], tested),
            baseline=result.baseline.accuracy["test"],
        ),
        verification=kept.built.check,
        latency=latency(kept.comparison, result.predicted[artifact.precision], artifact),
        speedup=speedup(kept.comparison, result.predicted, artifact.precision),
        machine=plan.machine,
        versions={**artifact.versions, **plan.versions},
        seeds={"search": plan.seed, "supernet": source.supernet.seed},
        data=Data(source.task.name, source.digests),
        reproduce=command,
        build=build_note(kept.built),
        slowdown=result.slowdown,
        mixed=result.mixed,
        licence=source.licence,
    )
    return write_bundle(plan.out / "bundle", manifest, artifact=artifact, baseline=result.baseline.artifact)


def latency(comparison: Comparison | None, predicted: Price, artifact: Artifact) -> Latency:
    """The measured latency where there is one, the predicted one otherwise; each says which."""
    forecast = Prediction(predicted.value, predicted.low, predicted.high)
    if comparison is None:
        return Latency(
            kind="predicted",
            value=predicted.value,
            low=predicted.low,
            high=predicted.high,
            batch=1,
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


def speedup(
    comparison: Comparison | None, predicted: Mapping[str, Price], precision: str, against: str = AGAINST
) -> Speedup:
    """Over the baseline: from pairs measured in turns, or from two predictions (``predicted["baseline"]``)."""
    if comparison is not None:
        c = comparison
        return Speedup(c.ratio, c.low, c.high, against, "measured", c.processes, c.confidence)
    base, own = predicted["baseline"], predicted[precision]
    ratio = base.value / own.value
    # Both come from one profile, so part of its error cancels; we assume that half of the band, in logarithms, is left.
    spread = (own.high / own.low) ** 0.25
    return Speedup(ratio, ratio / spread, ratio * spread, against, "predicted", confidence=None)


def build_note(built: Built) -> dict[str, Any] | None:
    """What a device must still do with the artifact (TensorRT builds its engine there), and what one did; or None."""
    note = built.artifact.notes.get("build")
    if not isinstance(note, dict):
        return None
    return {**note, "engine": dict(built.engine)} if built.engine else dict(note)


def command(plan: Plan, options: Mapping[str, Any]) -> str:
    """The command that repeats this deployment: what the user gave, and the seed."""
    words = ["hnas-deploy", "--target", plan.device.name]
    for name, value in options.items():
        if value is not None and name not in ("out", "seed"):
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join([*words, "--seed", str(plan.seed)])


def summary(result: Result, bundle: Bundle) -> dict[str, Any]:
    """Everything the table shows, and the front, as plain values."""
    name = result.arch.digest
    base = result.baseline
    rows = [row("largest", base, None, "baseline", result.predicted["baseline"], base.accuracy["test"])]
    for each in result.rows:
        forecast = result.predicted[each.built.artifact.precision]
        found = row(name, each.built, each.comparison, each.verdict, forecast, result.fp32_accuracy["test"])
        found["speedup"] = factor(speedup(each.comparison, result.predicted, each.built.artifact.precision))
        rows.append(found)
    first = next((each.comparison for each in result.rows if each.comparison is not None), None)
    if first is not None:
        rows[0]["latency_ms"] = _median(first, "a")
    n = bundle.manifest.accuracy.n if bundle.manifest.accuracy else 0
    return {
        "target": result.plan.device.name,
        "name": bundle.manifest.name,
        "bundle": str(bundle.path),
        "arch": result.arch.to_json(),
        "rows": rows,
        "refused": [{"precision": r.precision, "reason": r.reason} for r in result.refused],
        "notes": notes(result.slowdown, result.mixed),
        "front": [{"arch": c.arch.to_json(), "metrics": dict(c.metrics)} for c in result.front],
        "footnote": _footnote(result, n),
    }


def notes(slowdown: Slowdown | None, mixed: Mixed | None) -> list[str]:
    """What is said below the table: the layers that make int8 slow, and what became of blocks in float."""
    return [each.line() for each in (slowdown, mixed) if each is not None]


def _footnote(result: Result, tested: int) -> str:
    how = conditions(result.plan, result.kept.comparison)
    return f"top-1 on {tested} test images; {how}; speedup against {AGAINST}"


def conditions(plan: Plan, comparison: Comparison | None) -> str:
    """How the latencies of a table were come by: in turns on the plan's machine, or from the profile of its device."""
    if comparison is not None:
        c = comparison
        calls = f"batch {c.b.batch}, {c.b.threads} thread(s), n={len(c.b.times)}"
        there = f" on {plan.site.where}" if plan.site else ""
        return f"latency measured in turns{there} over {c.processes} processes, {calls}"
    low, high = plan.device.band
    profile = plan.device.power_mode or plan.device.title
    return f"latency predicted from the profile ({profile}), band x{low:g} to x{high:g}; not run on a device here"


def factor(faster: Speedup) -> dict[str, Any]:
    """A speedup as the table shows it."""
    return {"value": faster.value, "low": faster.low, "high": faster.high, "kind": faster.kind}


def row(
    subnet: str, built: Built, comparison: Comparison | None, verdict: str, forecast: Price, fp32: float | None = None
) -> dict[str, Any]:
    """One line of the table as plain values; a network without images has no accuracy.

    The verdict says, too, where an operator that we do not write ourselves made another converter do the work.
    """
    lacks = built.artifact.notes.get("lacks")
    if lacks is not None:
        verdict += f"; converted by {built.artifact.notes['converter']}, as we do not write {lacks}"
    found: dict[str, Any] = {
        "subnet": subnet,
        "precision": built.label,
        "accuracy_fp32": fp32,
        "accuracy": built.accuracy.get("test"),
        "predicted_ms": {"value": forecast.value, "low": forecast.low, "high": forecast.high},
        "size_bytes": built.artifact.size_bytes,
        "agreement": built.check.agreement,
        "sqnr_db": built.check.sqnr_db,
        "verdict": verdict,
    }
    if comparison is not None:
        found["latency_ms"] = _median(comparison, "b")
    return found


def _median(comparison: Comparison, which: Literal["a", "b"]) -> dict[str, float]:
    low, high = comparison.interval_ms(which)
    return {"value": (comparison.a if which == "a" else comparison.b).median_ms, "low": low, "high": high}
