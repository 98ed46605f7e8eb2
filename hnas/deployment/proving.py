"""The finalists of a search as artifacts: built, verified, measured in turns; the first that keeps its word."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from export.compiler import Compiler
from export.errors import ExportError, Unavailable
from export.measurement import Comparison, compare_many
from hnas.cost import Price
from hnas.cost.roofline import roofline
from hnas.deployment.build import (
    BLOCKS,
    PROCESSES,
    Built,
    Images,
    Row,
    Stage,
    build,
    build_each,
    build_once,
    build_within,
    judge,
)
from hnas.deployment.bundling import Result
from hnas.deployment.folder import Unreachable
from hnas.deployment.plan import GUARD, Plan
from hnas.deployment.pricing import fitting, samples
from hnas.pareto import Candidate, front
from hnas.space import Arch
from hnas.study import Study


def best_of(
    study: Study,
    plan: Plan,
    finalists: Sequence[Candidate],
    candidates: Sequence[Candidate],
    notify: Stage,
    compiler: Compiler,
) -> Result:
    """Build finalists in turn until one's fastest artifact keeps the guard and every window; the best so far.

    Where only a slower precision of a finalist can be kept, the next one may do better; the highest speedup wins.
    Unreachable or ExportError, with every reason, where no artifact can be kept.
    """
    notify("build", 0, len(plan.precisions) + 1)
    largest = study.supernet.space.largest
    base_images = _images(study, largest)
    net = study.supernet.extract(largest, study.calibrate(largest))
    baseline = _built(study, plan, compiler, largest, net, base_images, "fp32")
    ahead = tuple(front([c for c in candidates if "accuracy" in c.metrics], "latency_ms"))
    objections: list[str] = []
    kept: list[Result] = []
    for candidate in finalists:
        try:
            found = _proved(study, plan, candidate.arch, baseline, ahead, notify, compiler)
        except Unavailable:
            raise
        except ExportError as error:
            objections.append(str(error))
            continue
        if isinstance(found, list):
            objections += found
            continue
        kept.append(found)
        if plan.windows or _speed(found.kept) >= max(map(_speed, found.rows)):
            break
    if kept:
        return max(kept, key=lambda found: _speed(found.kept))
    reasons = "; ".join(dict.fromkeys(objections))
    kind = Unreachable if plan.windows else ExportError
    raise kind(f"no artifact of the best {len(finalists)} subnets can be kept: {reasons}")


def _proved(
    study: Study,
    plan: Plan,
    arch: Arch,
    baseline: Built,
    ahead: tuple[Candidate, ...],
    notify: Stage,
    compiler: Compiler,
) -> Result | list[str]:
    """One finalist in every precision, measured and judged; why not, artifact by artifact, where none can be kept."""
    images = _images(study, arch)
    net = study.supernet.extract(arch, study.calibrate(arch))
    built, refused = build_each(
        plan.precisions,
        partial(_built, study, plan, compiler, arch, net, images),
        lambda done: notify("build", done, len(plan.precisions) + 1),
    )
    notify("measure", 0, 1)
    comparisons = _compare(study, plan, arch, baseline, built)
    accuracies, predicted = _accuracies(images), _predictions(study, plan, arch)
    floor = baseline.accuracy["search"] - GUARD if not plan.windows else None
    best, rows = judge(built, comparisons, accuracies["search"], GUARD, objection_of(plan, predicted, floor))
    if best is None:
        return [f"{r.built.artifact.precision}: {r.verdict.removeprefix('not taken: ')}" for r in rows]
    return Result(
        plan=plan,
        arch=arch,
        best=best,
        baseline=baseline,
        rows=tuple(rows),
        refused=tuple(refused),
        predicted=predicted,
        fp32_accuracy=accuracies,
        front=ahead,
    )


def _speed(row: Row) -> float:
    """The measured speedup of an artifact; where nothing is measured all are alike, and the first finalist stands."""
    return row.comparison.ratio if row.comparison is not None else 1.0


def _built(
    study: Study, plan: Plan, compiler: Compiler, arch: Arch, net: nn.Module, images: Images, precision: str
) -> Built:
    """The artifact of a subnet in the run's folder; one that an interrupted run left there whole is taken."""

    def make(rung: str | None) -> Built:
        made: dict[str, Any] = {"device": plan.device.name, "precision": precision, "threads": plan.threads}
        ends: dict[str, Any] = {"opened": plan.open, "compiler": compiler}
        path = plan.out / "artifacts" / arch.digest / (precision if rung is None else f"{precision}-{rung}")
        return build_once(study.journal, path, lambda path: build(net, images, **made, path=path, recover=rung, **ends))

    if precision != "int8":
        return make(None)
    return build_within(_accuracies(images)["search"] - GUARD, make)


def _images(study: Study, arch: Arch) -> Images:
    """Every held-out image as the inputs of ``arch``, and what the calibrated fp32 subnet says of them."""
    shapes = study.supernet.space.example(arch)
    answers = {split: study.outputs(arch, split) for split in ("search", "test")}
    return Images(
        calibration=samples(study, "calibration", shapes),
        search=samples(study, "search", shapes),
        test=samples(study, "test", shapes),
        labels={split: labels.numpy() for split, (_, labels) in answers.items()},
        expected={split: outputs.numpy() for split, (outputs, _) in answers.items()},
    )


def _accuracies(images: Images) -> dict[str, float]:
    return {s: float(np.mean(images.expected[s].argmax(1) == images.labels[s])) for s in images.expected}


def _compare(study: Study, plan: Plan, arch: Arch, baseline: Built, built: Sequence[Built]) -> list[Comparison | None]:
    """Every artifact against the largest subnet in fp32, in turns, over fresh processes; None if nothing runs here."""
    if not plan.measured:
        return [None] * len(built)

    def measure() -> Any:
        artifacts = [b.artifact for b in built]
        session: dict[str, Any] = {"processes": PROCESSES, "blocks": BLOCKS, "transport": plan.transport}
        found = compare_many(baseline.artifact, artifacts, fitting(study), seed=plan.seed, **session)
        return [comparison.to_json() for comparison in found]

    names = "+".join(b.artifact.digest[:12] for b in (baseline, *built))
    return [Comparison.from_json(c) for c in study.journal.call(f"comparison/{arch.digest}/{names}", measure)]


def _predictions(study: Study, plan: Plan, arch: Arch) -> dict[str, Price]:
    """What the device's profile says of the subnet in every precision, and of the largest in fp32 ("baseline")."""
    space, skeleton = study.supernet.space, study.supernet.skeleton
    known = {p: roofline(space, skeleton, plan.device, p)(arch) for p in plan.precisions}
    return {**known, "baseline": roofline(space, skeleton, plan.device, "fp32")(space.largest)}


def objection_of(
    plan: Plan, predicted: Mapping[str, Price], floor: float | None = None
) -> Callable[[Built, Comparison | None], str | None]:
    """Why an artifact itself misses a window, or None; the search's figures were only the subnet's.

    Where nothing is measured, latency is that predicted for the artifact's own precision. ``floor`` is the accuracy
    that stands for the windows where none is given: the largest subnet's less the guard.
    """

    def objection(built: Built, comparison: Comparison | None) -> str | None:
        size, accuracy = built.artifact.size_bytes, built.accuracy["search"]
        if plan.max_size_bytes is not None and size > plan.max_size_bytes:
            return f"its file has {size / 1e3:.3g} KB (asked: {plan.max_size_bytes / 1e3:g})"
        if plan.min_accuracy is not None and accuracy < plan.min_accuracy:
            return f"it reaches {accuracy:.1%} on the search images (asked: {plan.min_accuracy:.1%})"
        if floor is not None and accuracy < floor - 1e-9:
            return f"it reaches {accuracy:.2%} on the search images (the largest subnet less the guard: {floor:.2%})"
        if plan.max_latency_ms is None:
            return None
        if comparison is not None:
            latency_ms, takes = comparison.b.median_ms, "it takes"
        else:
            latency_ms, takes = predicted[built.artifact.precision].value, "it is predicted to take"
        if latency_ms > plan.max_latency_ms:
            return f"{takes} {latency_ms:.3g} ms (asked: {plan.max_latency_ms:g})"
        return None

    return objection
