"""Gather what the report of a deployment says, and write it: ``write_report(found, Path("runs/x/report.html"))``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hnas.deployment.judge import wilson_interval
from hnas.export.device.errors import ExportError
from hnas.files import write_text
from hnas.pages.deployment import ReportFacts, deployment_page

if TYPE_CHECKING:
    from hnas.deployment.bundle import Deployment
    from hnas.export.proof.inspection import Layer

_REPORT = "report.html"


def write_report(found: Deployment, path: Path | None = None) -> Path:
    """Write the report of a deployment as one HTML file, and return its path.

    The layers of the kept artifact are timed on this machine if it was measured here.

    path: the file; None: report.html in the folder of the run. A report that is already there is kept, since a
        finished run does not change.

    Raises:
        OSError: the file cannot be written.
    """
    if path is None:
        path = found.result.plan.out / _REPORT
        if path.is_file():
            return path
    write_text(path, deployment_page(found.to_json(), _facts(found)))
    return path


def write_picture(found: Deployment, path: Path) -> None:
    """Write the front as a picture, in the format of the suffix: .png, .svg or .pdf.

    Raises:
        ValueError: matplotlib has no such format, or the file cannot be written.
        Unavailable: matplotlib is not installed.
    """
    figure = found.plot().figure
    try:
        figure.savefig(path, dpi=200, bbox_inches="tight")  # type: ignore[union-attr]  # a sub-figure has none
    except (ValueError, OSError) as error:
        raise ValueError(f"cannot write {path}: {error}") from None


def _facts(found: Deployment) -> ReportFacts:
    manifest, comparison = found.bundle.manifest, found.result.kept.comparison
    times = {} if comparison is None else {found.result.baseline.name: comparison.a, "kept": comparison.b}
    seen, findings = _layers(found)
    mixed = manifest.mixed
    return ReportFacts(
        command=manifest.reproduce,
        provenance=list(_provenance(found)),
        intervals=_intervals(found),
        times={name: [1000 * each for each in measured.times] for name, measured in times.items()},
        layers=[
            (each.name, each.microseconds, " ".join(filter(None, (each.kind, each.precision))))
            for each in seen
            if each.microseconds is not None
        ],
        findings=findings,
        precisions=list(_precisions(seen)),
        mixed="" if mixed is None else mixed.line(),
        blocks=[(name, db, name in mixed.blocks_in_float) for name, db in mixed.sensitivity_db.items()]
        if mixed
        else (),
    )


def _precisions(seen: Sequence[Layer]) -> Iterator[tuple[str, int, float]]:
    """Yield (precision, number, microseconds) of the kernels, the precision with the most first."""
    kernels = [layer for layer in seen if layer.role == "kernel"]
    for name, count in Counter(layer.precision for layer in kernels).most_common():
        spent = sum(layer.microseconds or 0.0 for layer in kernels if layer.precision == name)
        yield name or "not stated by the runtime", count, spent


def _intervals(found: Deployment) -> list[tuple[float, float] | None]:
    """Return the 95 % interval of the accuracy of each row, which is that on the test images."""
    accuracy = found.bundle.manifest.accuracy
    if accuracy is None:
        return []
    shares = [row["accuracy"] for row in found.to_json()["rows"]]
    return [None if share is None else wilson_interval(share, accuracy.n) for share in shares]


def _layers(found: Deployment) -> tuple[Sequence[Layer], list[str]]:
    """Return the layers of the kept artifact, and what is said about them."""
    plan = found.result.plan
    if found.result.kept.comparison is None or plan.site:
        return [], [f"The layers of {plan.device.title} were not timed: nothing of it runs on this machine."]
    from hnas.export.diagnosis.profiling import layers

    try:
        seen = layers(found.bundle.artifact())
    except (ExportError, ValueError) as error:
        return [], [f"The layers cannot be timed: {error}"]
    return seen.layers, [seen.summary(), *seen.findings]


def _provenance(found: Deployment) -> Iterator[tuple[str, str]]:
    manifest = found.bundle.manifest
    yield "bundle", f"{found.bundle.path}, digest {found.bundle.digest}"
    yield "made", manifest.created
    yield "command", manifest.reproduce
    yield "machine", f"{manifest.machine.cpu}, {manifest.machine.cores} cores, {manifest.machine.os}"
    if manifest.load is not None:
        yield "load", manifest.load.line()
    yield "versions", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    yield "seeds", ", ".join(f"{name} {seed}" for name, seed in manifest.seeds.items()) or "none"
    if manifest.space is not None:
        yield "space", f"{manifest.space.name}, supernet {manifest.space.supernet or 'unknown'}"
    if manifest.data is not None:
        yield "data", f"{manifest.data.name}: " + ", ".join(f"{k} {v}" for k, v in manifest.data.digests.items())
    yield "licence", manifest.licence or "none stated"
