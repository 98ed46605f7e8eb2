"""The final table of a deployment as plain values: one row for the baseline and one for each artifact."""

from __future__ import annotations

from typing import Any, Literal

from hnas.cost import Price
from hnas.deployment.build import Built
from hnas.deployment.flow import Baseline
from hnas.deployment.judge import JudgedArtifact
from hnas.deployment.result import Result
from hnas.export.bundle.bundle import Bundle
from hnas.export.bundle.manifest import Speedup
from hnas.export.onnx.source import describe_origin
from hnas.export.proof.measurement import Comparison


def summarise_deployment(result: Result, bundle: Bundle) -> dict[str, Any]:
    """Return the table, and for a searched subnet the architecture and the Pareto front, as plain values."""
    manifest, proof = bundle.manifest, result.proof
    notes = [
        describe_origin(manifest.source),
        f"verified: {manifest.verification.line()}",
        *(each.line() for each in (proof.slowdown, proof.mixed, proof.ends) if each is not None),
        *_doubts(result),
    ]
    found = {
        "target": result.plan.device.name,
        "name": manifest.name,
        "bundle": str(bundle.path),
        "rows": _rows(result),
        "refused": [{"precision": each.precision, "reason": each.reason} for each in result.refused],
        "notes": [note for note in notes if note],
        "footnote": _footnote(result, 0 if manifest.accuracy is None else manifest.accuracy.n),
    }
    if result.arch is None:
        return found
    front = [{"arch": each.arch.to_json(), "metrics": dict(each.metrics)} for each in result.front]
    return {**found, "arch": result.arch.to_json(), "front": front, "searched": result.searched}


def speedup_of(row: JudgedArtifact, baseline: Baseline, predicted: Price) -> Speedup | None:
    """Return the speedup of an artifact over the baseline, measured in pairs or from two predictions.

    Return None for the fp32 artifact of a user's own network, because it is the baseline itself.
    """
    if baseline.own and row.built.artifact.precision == "fp32":
        return None
    if row.comparison is not None:
        c = row.comparison
        return Speedup(c.ratio, c.low, c.high, baseline.against, "measured", c.processes, c.confidence)
    ratio = baseline.latency.value / predicted.value
    # Both predictions use one profile, so a part of the error cancels. Half of the band (in logs) is kept.
    spread = (predicted.high / predicted.low) ** 0.25
    return Speedup(ratio, ratio / spread, ratio * spread, baseline.against, "predicted", confidence=None)


def _rows(result: Result) -> list[dict[str, Any]]:
    """Return the rows of the table. The baseline is the first row, unless another row shows the same artifact."""
    baseline, network = result.baseline, result.proof.network
    rows = []
    if not (baseline.own and any(row.built.artifact.precision == "fp32" for row in result.rows)):
        first = _row(baseline.name, baseline.built, "baseline", baseline.latency, baseline.built.accuracy.get("test"))
        compared = next((row.comparison for row in result.rows if row.comparison is not None), None)
        rows.append(first if compared is None else {**first, "latency_ms": _median(compared, "a")})
    for each in result.rows:
        predicted = result.proof.predicted[each.built.artifact.precision]
        row = _row(network.name, each.built, each.verdict, predicted, network.accuracy.get("test"))
        if each.comparison is not None:
            row["latency_ms"] = _median(each.comparison, "b")
        if (faster := speedup_of(each, baseline, predicted)) is not None:
            row["speedup"] = {name: getattr(faster, name) for name in ("value", "low", "high", "kind")}
        rows.append(row)
    return rows


def _row(name: str, built: Built, verdict: str, predicted: Price, fp32_accuracy: float | None) -> dict[str, Any]:
    """Return one row without measured latency. A network without labelled images has no accuracy.

    If another converter made the artifact, because our writer lacks an operator, the verdict says so.
    """
    notes = built.artifact.notes
    if (lacks := notes.get("lacks")) is not None:
        verdict += f"; converted by {notes['converter']}, as we do not write {lacks}"
    return {
        "subnet": name,
        "precision": built.label,
        "accuracy_fp32": fp32_accuracy,
        "accuracy": built.accuracy.get("test"),
        "predicted_ms": {
            "value": predicted.value,
            "low": predicted.low,
            "high": predicted.high,
            "basis": predicted.basis,
        },
        "size_bytes": built.artifact.size_bytes,
        "agreement": built.check.agreement,
        "sqnr_db": built.check.lowest_db,
        "grade": built.check.grade,
        "worst": None if built.check.worst is None else str(built.check.worst),
        "verdict": verdict,
    }


def _doubts(result: Result) -> list[str]:
    """Return what makes the measured figures uncertain: a noisy latency, and a machine that was busy."""
    compared = [(each.built.label, each.comparison) for each in result.rows if each.comparison is not None]
    if not compared:
        return []
    measured = {result.baseline.name: compared[0][1].a} | {label: comparison.b for label, comparison in compared}
    found = [f"latency of {name}: {noise}" for name, each in measured.items() if (noise := each.noise)]
    first = compared[0][1]
    if first.load is not None and first.widened > 1:
        found.append(f"{first.load.line()}: measured twice, intervals widened by {first.widened - 1:.0%}")
    return found


def _footnote(result: Result, tested: int) -> str:
    found = f"{_conditions(result)}; speedup against {result.baseline.against}"
    return f"top-1 on {tested} test images; {found}" if tested else found


def _conditions(result: Result) -> str:
    """Return how the latencies of the table were obtained: measured on the plan's machine, or predicted."""
    plan, comparison = result.plan, result.kept.comparison
    if comparison is not None:
        calls = f"batch {comparison.b.batch}, {comparison.b.threads} thread(s), n={len(comparison.b.times)}"
        there = f" on {plan.site.where}" if plan.site else ""
        load = f"; {comparison.load.line()}" if comparison.load else ""
        return f"latency measured in interleaved blocks{there} over {comparison.processes} processes, {calls}{load}"
    device, basis = plan.device, result.proof.predicted[result.kept.built.artifact.precision].basis
    profile = f"{device.title}, {device.power_mode}" if device.power_mode else device.title
    return f"latency predicted from the profile ({profile}): {basis}; not run on a device here"


def _median(comparison: Comparison, which: Literal["a", "b"]) -> dict[str, float]:
    low, high = comparison.interval_ms(which)
    return {"value": (comparison.a if which == "a" else comparison.b).median_ms, "low": low, "high": high}
