"""Choose the subnets of a search to build, and make a ``StaticNetwork`` of each."""

from __future__ import annotations

import numpy as np

from hnas.cost.roofline import trace
from hnas.data.images import Preprocessing
from hnas.deployment.build import CALIBRATION, EVIDENCE
from hnas.deployment.folder import Unreachable
from hnas.deployment.network import SPLITS, HeldOutSamples, StaticNetwork
from hnas.deployment.plan import GUARD, ROUNDING, Plan
from hnas.deployment.pricing import failures, held_out_samples
from hnas.export.device.errors import ExportError
from hnas.pareto import Candidate, front
from hnas.space import Arch
from hnas.strategies.surrogate import estimated_accuracies
from hnas.study import Study

FINALISTS = 3  # subnets that are built, one after the other, until the artifact of one meets every constraint
# A share of top-1, about the loss of int8. The int8 artifact of a subnet nearer to the goal would seldom be kept.
_SLACK = 0.003


def subnet_network(study: Study, arch: Arch, name: str = "") -> StaticNetwork:
    """Return the calibrated subnet ``arch`` as a network to try, judged on every held-out image."""
    space, skeleton = study.supernet.space, study.supernet.skeleton
    shapes = space.example(arch)
    answers = {split: study.outputs(arch, split) for split in SPLITS}
    search = held_out_samples(study, "search", shapes)
    return StaticNetwork(
        name=name or arch.digest,
        key=arch.digest,
        module=study.supernet.extract(arch, study.calibrate(arch)),
        example=search[0],
        count_kernels=lambda: trace(skeleton(arch), *shapes),
        calibration=held_out_samples(study, "calibration", shapes, CALIBRATION),
        evidence=search[:EVIDENCE],
        labelled=HeldOutSamples(
            search=search,
            test=held_out_samples(study, "test", shapes),
            labels={split: labels.numpy() for split, (_, labels) in answers.items()},
            expected={split: outputs.numpy() for split, (outputs, _) in answers.items()},
        ),
        arch=arch,
        preprocessing=_preprocessing(study, search[0][0].shape),
    )


def _preprocessing(study: Study, shape: tuple[int, ...]) -> Preprocessing | None:
    """Return the preprocessing of the task at the size of an input; None for a task without images."""
    found = getattr(study.task, "preprocessing", None)
    return found.at((shape[2], shape[3])) if isinstance(found, Preprocessing) and len(shape) == 4 else None


def choose_finalists(study: Study, plan: Plan, candidates: list[Candidate]) -> list[Candidate]:
    """Return the candidates to build, best first.

    1. A constraint on latency or size: the most accurate candidates that meet all constraints. The last candidate has
       the smallest size, or the lowest latency if there is no constraint on size. It is a fallback, because an artifact
       can be larger or slower than the search has estimated.
    2. A constraint on accuracy alone: the fastest candidates that meet it.
    3. No constraint: the fastest candidates whose accuracy is within the guard of the largest subnet's accuracy.
       The artifact must reach this accuracy too. If a lower precision will be tried, subnets with ``_SLACK`` more
       accuracy come first.

    A candidate counts as accurate as the lower of two values: what was measured, and what a predictor estimates from
    all candidates. Otherwise those with the most luck on the search images would be chosen.

    Raises:
        Unreachable: no candidate meets all constraints. The message states the nearest values.
        ExportError: no candidate could be compiled and run.
    """
    scored = [each for each in candidates if "accuracy" in each.metrics]
    inside = [each for each in scored if all(bound.admits(each.metrics[bound.metric]) for bound in plan.bounds)]
    if not inside:
        raise _nothing_inside(study, plan, candidates)
    estimates = estimated_accuracies(study, study.supernet.space, scored, relative=not plan.bounds)
    lowered = [_with_accuracy(each, min(each.metrics["accuracy"], estimates[each.arch])) for each in inside]
    ahead = front(lowered, "latency_ms")
    costs = [bound.metric for bound in plan.bounds if bound.metric != "accuracy"]
    if costs:  # case 1
        last = min(lowered, key=lambda each: each.metrics[costs[-1]])
        best = [each for each in ahead[::-1] if each.arch != last.arch]
        return [*best[: FINALISTS - 1], last]
    if plan.bounds:  # case 2
        goal = plan.bounds[0].limit
        return sorted(ahead, key=lambda each: max(0.0, goal - each.metrics["accuracy"]))[:FINALISTS]
    slack = _slack(plan)
    return _near_goal(ahead, goal_without_bounds(study, plan) - slack, slack)[:FINALISTS]  # case 3


def _with_accuracy(candidate: Candidate, accuracy: float) -> Candidate:
    return Candidate(candidate.arch, {**candidate.metrics, "accuracy": accuracy})


def goal_without_bounds(study: Study, plan: Plan) -> float:
    """Return the accuracy that a subnet should have if the user gives no constraint, with the slack for int8."""
    return study.score(study.supernet.space.largest).metrics["accuracy"] - GUARD - ROUNDING + _slack(plan)


def _slack(plan: Plan) -> float:
    return _SLACK if plan.precisions != ("fp32",) else 0.0


def _near_goal(ahead: list[Candidate], goal: float, slack: float) -> list[Candidate]:
    """Return the candidates that reach ``goal``, the fastest first. Candidates below ``goal + slack`` come last.

    If no candidate reaches ``goal``, return the most accurate candidate.
    """
    within = [each for each in ahead if each.metrics["accuracy"] >= goal] or ahead[-1:]
    return sorted(within, key=lambda each: each.metrics["accuracy"] < goal + slack)  # a stable sort


def _nothing_inside(study: Study, plan: Plan, candidates: list[Candidate]) -> ExportError:
    failed = failures(study)
    if failed and all(np.isinf(each.metrics["latency_ms"]) for each in candidates):
        return ExportError(f"none of {len(candidates)} subnets could be compiled and run; the first: {failed[0]}")
    without = f"; {len(failed)} could not be compiled and run, the first: {failed[0]}" if failed else ""
    return Unreachable(describe_nearest(plan, candidates) + without)


def describe_nearest(plan: Plan, candidates: list[Candidate]) -> str:
    """Return one line with the nearest value to each constraint that no subnet meets.

    If each single constraint can be met, but not all together, the line states the nearest value to every constraint.
    """
    missed: list[str] = []
    kept: list[str] = []
    for bound in plan.bounds:
        value = bound.nearest(each.metrics.get(bound.metric, np.inf) for each in candidates)
        if value is not None:
            (kept if bound.admits(value) else missed).append(bound.describe_nearest(value))
    nearest = "; ".join(missed or ["each alone can be met, but no subnet meets all", *kept])
    return f"no subnet of {len(candidates)} tried meets every constraint: {nearest}; relax a constraint"
