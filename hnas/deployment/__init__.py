"""From a trained supernet to a bundle: plan, search, materialise, fuse, quantise, export, verify, measure, bundle."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import numpy as np
from torch import nn

from export.compiler import Compiler
from export.errors import ExportError, Unavailable
from export.measurement import Comparison, compare_many
from export.zoo import Bundle
from hnas.cost import Cost, Price
from hnas.cost.flops import parameters
from hnas.cost.roofline import BYTES, roofline
from hnas.deployment import bundling
from hnas.deployment.build import (
    BLOCKS,
    PROCESSES,
    Built,
    Images,
    Row,
    build,
    build_each,
    build_once,
    build_within,
    judge,
    limited_compiler,
)
from hnas.deployment.bundling import Result
from hnas.deployment.folder import Unreachable, opened
from hnas.deployment.plan import GUARD, Plan, resolve
from hnas.deployment.pricing import Measured, failures, fitting, samples
from hnas.deployment.source import Source, open_source
from hnas.memory import reuse_memory
from hnas.pareto import Candidate, front
from hnas.space import Arch
from hnas.study import Study

Stage = Callable[[str, int, int], None]  # stage, steps done, steps in all
SLACK = 0.003  # of top-1: about what int8 takes; of a subnet that is nearer to the goal int8 would seldom be kept
FINALISTS = 3  # how many subnets are built, one after the other, until one keeps every window as an artifact


@dataclass(frozen=True)
class Deployment:
    """What ``deploy`` did, and the bundle that it left."""

    result: Result
    bundle: Bundle

    def to_json(self) -> dict[str, Any]:
        """Rows, front and manifest as plain values."""
        return bundling.summary(self.result, self.bundle)


def deploy(target: str, *, resume: bool = False, on: Stage | None = None, **options: Any) -> Deployment:
    """Search the supernet for ``target`` and leave a verified, measured bundle in ``out``.

    options: those of the command (``max_latency="5ms"``, ``min_accuracy="92%"``, ``max_size``, ``precision``,
    ``budget="40evals"``, ``seed``, ``threads``, ``supernet``, ``data``, ``out``, ``host``). ``on(stage, done, total)``
    follows.
    ValueError for wrong use, Unavailable for a missing runtime, ExportError when no artifact passes. A run's folder
    holds the journal and every artifact that was tried; the bundle in it appears whole or not at all.

    resume:
    1. the run was interrupted: finished evaluations, builds and measurements answer from its journal, the rest is done.
    2. it was finished: nothing is done again; its records and its bundle, checked byte for byte, are returned.
    3. there is no run in ``out``: it begins.
    4. the options, weights, images, CPU or version of hnas are others than those of the run: ValueError names which.
    5. another process is at work in ``out``: ValueError.
    """
    plan = resolve(target, resume=resume, **options)
    notify = on or _silent
    reuse_memory()
    source = open_source(plan.supernet, plan.data)
    with opened(plan, source, resume) as journal:
        study = Study(source.supernet, source.task, journal=journal, seed=plan.seed)
        with limited_compiler() as compiler, _costs(study, plan, compiler) as costs:
            study.costs = costs
            candidates = _search(study, plan, notify)
            chosen = _finalists(study, plan, candidates)
            return _build_first(study, plan, source, chosen, candidates, notify, options, compiler)


def estimate(plan: Plan) -> str:
    """What the search of ``plan`` will take, from pricing and scoring one subnet here."""
    source = open_source(plan.supernet, plan.data)
    if plan.seconds is not None:
        return f"about {plan.seconds:.0f} s of search and a minute of building and measuring"
    study = Study(source.supernet, source.task, seed=plan.seed)
    with limited_compiler() as compiler, _costs(study, plan, compiler) as costs:
        study.costs = costs
        arch = source.supernet.space.sample(Random(plan.seed))
        study.price(source.supernet.space.largest, "latency_ms")
        begun = time.monotonic()
        study.score(arch)
        each = time.monotonic() - begun
    total = each * (plan.evaluations or 0)
    return f"about {total:.0f} s of search ({each:.1f} s for one subnet here), then building and measuring"


def _silent(_stage: str, _done: int, _total: int) -> None:
    pass


@contextmanager
def _costs(study: Study, plan: Plan, compiler: Compiler) -> Iterator[dict[str, Cost]]:
    """What the windows bound: latency as this device has it, and the bytes of the weights."""
    smallest = min(BYTES[p] for p in plan.precisions)

    def size(arch: Arch) -> Price:
        value = float(parameters(study.supernet.skeleton(arch)) * smallest)
        return Price(value, "bytes", value, value, "predicted")

    if not plan.measured:
        precision = plan.precisions[-1]
        yield {
            "latency_ms": roofline(study.supernet.space, study.supernet.skeleton, plan.device, precision),
            "size_bytes": size,
        }
        return
    precision = "fp32" if plan.precision == "auto" else plan.precision
    measured = Measured(study, plan.device, plan.threads, precision, plan.site, compiler=compiler)
    try:
        yield {"latency_ms": measured, "size_bytes": size}
    finally:
        measured.close()


def _search(study: Study, plan: Plan, notify: Stage) -> list[Candidate]:
    from hnas.strategies.evolution import Window, search

    windows = {metric: Window(low, high) for metric, (low, high) in plan.windows.items()}
    seconds = None if plan.seconds is None else max(0.0, plan.seconds - study.journal.spent)
    if seconds is not None and (plan.out / "bundle").exists():
        seconds = 0.0  # a finished run is not searched further, whatever its clock says is left
    space, found = study.supernet.space, []
    total = plan.evaluations or 0
    notify("search", 0, total)
    for candidate in search(
        study, space, windows=windows, evaluations=plan.evaluations, seconds=seconds, seed=plan.seed
    ):
        found.append(candidate)
        notify("search", len(found), total)
    return found


def _finalists(study: Study, plan: Plan, candidates: list[Candidate]) -> list[Candidate]:
    """The candidates to build, best first.

    1. Latency or size is bounded: the most accurate inside all windows; the least of all is the last resort, as files
       and artifacts have more to them than the search knows.
    2. Only accuracy is: the fastest inside.
    3. Nothing is: the fastest within the guard of the largest subnet's accuracy; its artifact is held to that, too.
       Where a lower precision is to be tried, those that have a little accuracy to lose to it come first.
    """
    scored = [c for c in candidates if "accuracy" in c.metrics]
    inside = [c for c in scored if all(low <= c.metrics[m] <= high for m, (low, high) in plan.windows.items())]
    if not inside:
        failed = failures(study)
        if failed and all(np.isinf(c.metrics["latency_ms"]) for c in candidates):
            raise ExportError(f"none of {len(candidates)} subnets could be compiled and run; the first: {failed[0]}")
        without = f"; {len(failed)} could not be compiled and run, the first: {failed[0]}" if failed else ""
        raise Unreachable(_nearest(plan, candidates) + without)
    ahead = front(inside, "latency_ms")
    if plan.max_latency_ms is not None or plan.max_size_bytes is not None:
        bound = "latency_ms" if plan.max_size_bytes is None else "size_bytes"
        last = min(inside, key=lambda candidate: candidate.metrics[bound])
        best = [c for c in ahead[::-1] if c.arch != last.arch]
        return [*best[: FINALISTS - 1], last]
    if plan.min_accuracy is not None:
        return ahead[:FINALISTS]
    goal = study.score(study.supernet.space.largest).metrics["accuracy"] - GUARD - 1e-9
    within = [c for c in ahead if c.metrics["accuracy"] >= goal] or ahead[-1:]
    slack = SLACK if plan.precisions != ("fp32",) else 0.0
    return sorted(within, key=lambda c: c.metrics["accuracy"] < goal + slack)[:FINALISTS]  # stable: by latency in each


def _nearest(plan: Plan, candidates: list[Candidate]) -> str:
    """What the search reached of the windows that nothing satisfies, or of all where each can be kept alone."""
    missed: list[str] = []
    kept: list[str] = []
    for metric, (low, high) in plan.windows.items():
        values = [c.metrics[metric] for c in candidates if np.isfinite(c.metrics.get(metric, np.inf))]
        if not values:
            continue
        best = max(values) if metric == "accuracy" else min(values)
        said = kept if low <= best <= high else missed
        if metric == "latency_ms":
            said.append(f"the fastest takes {best:.3g} ms (asked: {high:g})")
        elif metric == "size_bytes":
            said.append(f"the smallest has {best / 1e3:.3g} KB of weights (asked: {high / 1e3:g})")
        else:
            said.append(f"the most accurate inside the other bounds reaches {best:.1%} (asked: {low:.1%})")
    nearest = "; ".join(missed or ["each alone can be kept, no subnet keeps all", *kept])
    return f"no subnet of {len(candidates)} tried keeps every bound: {nearest}; relax one of them"


def _build_first(
    study: Study,
    plan: Plan,
    source: Source,
    finalists: list[Candidate],
    candidates: list[Candidate],
    notify: Stage,
    options: Mapping[str, Any],
    compiler: Compiler,
) -> Deployment:
    """Build finalists in turn until one's fastest artifact keeps the guard and every window; bundle the best so far.

    Where only a slower precision of a finalist can be kept, the next one may do better; the highest speedup wins.
    """
    steps = len(plan.precisions) + 1
    notify("build", 0, steps)
    largest = study.supernet.space.largest
    base_images = _images(study, largest)
    net = study.supernet.extract(largest, study.calibrate(largest))
    baseline = _built(study, plan, compiler, largest, net, base_images, "fp32")
    objections: list[str] = []
    kept: list[Result] = []
    for candidate in finalists:
        images = _images(study, candidate.arch)
        net = study.supernet.extract(candidate.arch, study.calibrate(candidate.arch))
        try:
            built, refused = build_each(
                plan.precisions,
                partial(_built, study, plan, compiler, candidate.arch, net, images),
                lambda done: notify("build", done, steps),
            )
        except Unavailable:
            raise
        except ExportError as error:
            objections.append(str(error))
            continue
        notify("measure", 0, 1)
        comparisons = _compare(study, plan, candidate.arch, baseline, built)
        accuracies, predicted = _accuracies(images), _predictions(study, plan, candidate.arch)
        floor = baseline.accuracy["search"] - GUARD if not plan.windows else None
        best, rows = judge(built, comparisons, accuracies["search"], GUARD, _objection(plan, predicted, floor))
        if best is None:
            objections += [f"{r.built.artifact.precision}: {r.verdict.removeprefix('not taken: ')}" for r in rows]
            continue
        found = Result(
            plan=plan,
            arch=candidate.arch,
            best=best,
            baseline=baseline,
            rows=tuple(rows),
            refused=tuple(refused),
            predicted=predicted,
            fp32_accuracy=accuracies,
            front=tuple(front([c for c in candidates if "accuracy" in c.metrics], "latency_ms")),
        )
        kept.append(found)
        if plan.windows or _speed(found.kept) >= max(_speed(row) for row in rows):
            break
    if kept:
        notify("bundle", 0, 1)
        result = max(kept, key=lambda found: _speed(found.kept))
        return Deployment(result, bundling.write(result, source, bundling.command(plan, options)))
    reasons = "; ".join(dict.fromkeys(objections))
    kind = Unreachable if plan.windows else ExportError
    raise kind(f"no artifact of the best {len(finalists)} subnets can be kept: {reasons}")


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


def _objection(
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
