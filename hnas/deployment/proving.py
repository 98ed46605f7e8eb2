"""The finalists of a search as artifacts: built, verified, measured in turns; the first that keeps its word."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from hnas.cost import Price
from hnas.cost.roofline import roofline
from hnas.deployment import mixing
from hnas.deployment.build import (
    BLOCKS,
    PROCESSES,
    Built,
    Images,
    Refused,
    Row,
    Stage,
    build,
    build_each,
    build_mixed,
    build_once,
    build_within,
    judge,
)
from hnas.deployment.bundling import Result
from hnas.deployment.folder import Unreachable
from hnas.deployment.plan import GUARD, Plan
from hnas.deployment.pricing import fitting, samples
from hnas.export.bundle.manifest import Mixed
from hnas.export.compiling.compiler import Compiler
from hnas.export.device.errors import ExportError, Unavailable
from hnas.export.device.records import decode, encode
from hnas.export.proof.measurement import Comparison
from hnas.export.proof.slowdown import Slowdown
from hnas.export.proof.timing import compare_many
from hnas.pareto import Candidate, front
from hnas.space import Arch
from hnas.study import Study


@dataclass(frozen=True)
class Bench:
    """What every finalist is proved with: ``baseline`` is the largest subnet in fp32, ``ahead`` the search's front."""

    study: Study
    plan: Plan
    notify: Stage
    compiler: Compiler
    baseline: Built
    ahead: tuple[Candidate, ...]


@dataclass(frozen=True)
class Proof:
    """A finalist in every precision, measured and judged: ``best`` is the row to keep, None where none can be."""

    arch: Arch
    rows: tuple[Row, ...]
    best: int | None
    refused: tuple[Refused, ...]
    accuracies: Mapping[str, float]
    predicted: Mapping[str, Price]
    slowdown: Slowdown | None = None
    mixed: Mixed | None = None

    @property
    def speed(self) -> float:
        """Of the row to keep; 0 where there is none."""
        return 0.0 if self.best is None else _speed(self.rows[self.best])

    @property
    def objections(self) -> list[str]:
        """Why no row can be kept, one by one."""
        found = [f"{r.built.label}: {r.verdict.removeprefix('not taken: ')}" for r in self.rows]
        found += [f"{r.precision}: {r.reason}" for r in self.refused] if not self.rows else []
        return found + ([self.mixed.line()] if self.mixed else [])


def best_of(
    study: Study,
    plan: Plan,
    finalists: Sequence[Candidate],
    candidates: Sequence[Candidate],
    notify: Stage,
    compiler: Compiler,
) -> Result:
    """Build finalists in turn until one's fastest artifact keeps the guard and every window; the best so far.

    Where only a slower precision of a finalist can be kept, the next one may do better; the highest speedup wins. Of
    that one, or of the first where none can be kept, int8 with blocks in float is a last candidate, where it may help.
    Unreachable or ExportError, with every reason, where no artifact can be kept.
    """
    notify("build", 0, len(plan.precisions) + 1)
    largest = study.supernet.space.largest
    net = study.supernet.extract(largest, study.calibrate(largest))
    baseline = _built(study, plan, compiler, largest, net, _images(study, largest), "fp32")
    ahead = tuple(front([c for c in candidates if "accuracy" in c.metrics], "latency_ms"))
    bench = Bench(study, plan, notify, compiler, baseline, ahead)
    objections: list[str] = []
    proofs: list[Proof] = []
    for candidate in finalists:
        try:
            proofs.append(_proved(bench, candidate.arch))
        except Unavailable:
            raise
        except ExportError as error:
            objections.append(str(error))
            continue
        found = proofs[-1]
        if found.best is not None and (plan.windows or found.speed >= max(map(_speed, found.rows))):
            break
    if proofs:
        chosen = max(proofs, key=lambda found: found.speed)
        final = _mixed(bench, _blamed(bench, chosen))
        if final.best is not None:
            return _result(bench, final, final.best)
        objections += [said for found in proofs for said in (final if found is chosen else found).objections]
    reasons = "; ".join(dict.fromkeys(objections))
    kind = Unreachable if plan.windows else ExportError
    raise kind(f"no artifact of the best {len(finalists)} subnets can be kept: {reasons}")


def _result(bench: Bench, proof: Proof, best: int) -> Result:
    return Result(
        plan=bench.plan,
        arch=proof.arch,
        best=best,
        baseline=bench.baseline,
        rows=proof.rows,
        refused=proof.refused,
        predicted=proof.predicted,
        fp32_accuracy=proof.accuracies,
        front=bench.ahead,
        slowdown=proof.slowdown,
        mixed=proof.mixed,
    )


def _proved(bench: Bench, arch: Arch) -> Proof:
    """One finalist in every precision, measured and judged."""
    study, plan = bench.study, bench.plan
    images = _images(study, arch)
    net = study.supernet.extract(arch, study.calibrate(arch))
    built, refused = build_each(
        plan.precisions,
        partial(_built, study, plan, bench.compiler, arch, net, images),
        lambda done: bench.notify("build", done, len(plan.precisions) + 1),
        spare=plan.mixes,
    )
    bench.notify("measure", 0, 1)
    found = Proof(arch, (), None, tuple(refused), _accuracies(images), _predictions(study, plan, arch))
    return _judged(bench, found, built)


def _judged(bench: Bench, proof: Proof, built: Sequence[Built]) -> Proof:
    """The proof with these artifacts, in turns with the baseline."""
    comparisons = _compare(bench.study, bench.plan, proof.arch, bench.baseline, built)
    floor = bench.baseline.accuracy["search"] - GUARD if not bench.plan.windows else None
    objection = objection_of(bench.plan, proof.predicted, floor)
    best, rows = judge(built, comparisons, proof.accuracies["search"], GUARD, objection)
    return replace(proof, rows=tuple(rows), best=best)


def _blamed(bench: Bench, proof: Proof) -> Proof:
    """The proof with the layers that make int8 no faster than what is kept, where it is not."""

    def profile() -> Any:
        return encode(mixing.slowdown(bench.plan, proof.rows, proof.best))

    found = bench.study.journal.call(f"slowdown/{proof.arch.digest}", profile)
    return proof if found is None else replace(proof, slowdown=decode(Slowdown, found, "journal"))


def _mixed(bench: Bench, proof: Proof) -> Proof:
    """The proof with int8 with blocks in float among its rows, where `mixing.reason` says that it may help."""
    study, plan, arch = bench.study, bench.plan, proof.arch
    floor = _floor(bench, proof)
    why = mixing.reason(plan, proof.rows, proof.refused, proof.slowdown, floor)
    if why is None:
        return proof
    bench.notify("mixed", 0, 1)

    def make() -> Built:
        net = study.supernet.extract(arch, study.calibrate(arch))
        made: dict[str, Any] = {"device": plan.device.name, "threads": plan.threads, "compiler": bench.compiler}
        path = plan.out / "artifacts" / arch.digest / "int8-mixed"
        return build_once(study.journal, path, lambda path: build_mixed(net, images, floor, path=path, **made))

    def outcome() -> str:
        found = mixing.attempt(make)
        return found if isinstance(found, str) else ""

    images = _images(study, arch)
    if said := study.journal.call(f"mixed/{arch.digest}", outcome):
        return replace(proof, mixed=Mixed(why, said))
    found = _judged(bench, proof, [*(row.built for row in proof.rows), make()])
    return replace(found, mixed=mixing.record(why, found.rows[-1]))


def _floor(bench: Bench, proof: Proof) -> float:
    """The accuracy on the search images that an artifact must reach: the guard's, a bound's, or the default goal's."""
    goal = bench.plan.min_accuracy or 0.0 if bench.plan.windows else bench.baseline.accuracy["search"] - GUARD
    return max(proof.accuracies["search"] - GUARD, goal)


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
    if not plan.measured or not built:
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
