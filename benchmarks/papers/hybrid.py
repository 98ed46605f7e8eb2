"""A2, A3, A4: hybrid operations in one supernet (Shin, Cho, Kim, IEEE Access 2024, DOI 10.1109/ACCESS.2024.3350732).

The text of the paper was not available. The three claims come from its abstract; the strategies are reconstructions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np

from hnas.benchmarks.papers.claims import Claim, StudyPlan
from hnas.benchmarks.papers.hybrid_plan import (
    AXES,
    TRAINERS,
    Trainer,
    alone_accuracies,
    alone_parts,
    common_archs,
    hybrid_scale,
    hybrid_space,
    supernet_parts,
    tau_controls,
)
from hnas.benchmarks.papers.parts import StudyPart, StudyParts
from hnas.benchmarks.papers.report import ClaimVerdict, StudyReport, StudyTable, judge_difference
from hnas.benchmarks.papers.statistics import kendall, mean_interval, paired
from hnas.benchmarks.papers.supernets import costs

_BUDGETS = 5  # of the common set, for A4
_CONVEX = {
    "convex, learned": Trainer("convex_combination", 2.6),
    "convex, uniform": Trainer("convex_combination", 2.6, learn=False),
}
_PROPOSED = "union (V1)"
_HYBRIDS = (_PROPOSED, "progressive (V2)", "channel split (V3)", "sandwich", "spos, then union")
_RIVAL = "spos"  # the simplest of all
_RIVALS = ("set sampling", _RIVAL)
_A2_TRAINERS = {**_CONVEX, **{name: TRAINERS[name] for name in (_RIVAL, _PROPOSED)}}


def _compared(plan: StudyPlan) -> dict[str, Trainer]:
    """Return the trainings that A3 and A4 compare; raise ValueError for an unknown name in the plan."""
    if unknown := [name for name in plan.only if name not in TRAINERS]:
        raise ValueError(f"no training {unknown[0]!r}; known: {'; '.join(TRAINERS)}")
    return {name: trainer for name, trainer in TRAINERS.items() if name in (plan.only or TRAINERS)}


def _mean_accuracies(parts: StudyParts, wanted: Sequence[StudyPart]) -> list[float]:
    """Return the mean test accuracy over the common set, for each seed."""
    return [float(np.mean(parts[each]["test"])) for each in wanted]


def _chosen_accuracies(parts: StudyParts, wanted: Sequence[StudyPart]) -> list[float]:
    """Return the test accuracy of the architecture that the search split ranks first, for each seed."""
    return [float(parts[each]["test"][int(np.argmax(parts[each]["search"]))]) for each in wanted]


# --- A2 ---------------------------------------------------------------------------------------------------------------


def _a2_parts(plan: StudyPlan, _: StudyParts) -> list[StudyPart]:
    """Return convex combinations, learned and uniform, and one-hot strategies, on both axes."""
    return [each for axis in AXES for trainer in _A2_TRAINERS.values() for each in supernet_parts(plan, trainer, axis)]


def _a2_judge(plan: StudyPlan, parts: StudyParts) -> StudyReport:
    """Judge how far the mean one-hot subnet of a mixture lies below that of the proposed strategy."""
    verdicts: list[ClaimVerdict] = []
    rows = []
    for axis in AXES:
        proposed = _mean_accuracies(parts, supernet_parts(plan, TRAINERS[_PROPOSED], axis))
        for name, trainer in _A2_TRAINERS.items():
            found = _mean_accuracies(parts, supernet_parts(plan, trainer, axis))
            rows.append([axis, name, 100 * float(np.mean(found)), 100 * float(np.max(found))])
            if name in _CONVEX:
                question = f"{name} is more than 10 points below {_PROPOSED}, equal {axis}"
                verdicts.append(judge_difference(question, paired(proposed, found), above=0.10))
    table = StudyTable("one-hot subnets, test accuracy in %", ("equal", "training", "mean", "best seed"), rows)
    return StudyReport(hybrid_scale(plan), verdicts, [table])


# --- A3 ---------------------------------------------------------------------------------------------------------------


def _a3_parts(plan: StudyPlan, _: StudyParts) -> list[StudyPart]:
    """Return every strategy on both axes, and the trainings alone."""
    trainers = _compared(plan).values()
    supernets = [each for axis in AXES for trainer in trainers for each in supernet_parts(plan, trainer, axis)]
    lone = alone_parts(plan, common_archs(plan) if plan.alone else [])
    return [*supernets, *(each for seeds in lone for each in seeds)]


def _a3_judge(plan: StudyPlan, parts: StudyParts) -> StudyReport:
    """Compare hybrid strategies with set sampling; show the rank correlation and its ceiling."""
    verdicts, rows = [], []
    for axis in AXES:
        found = {name: supernet_parts(plan, trainer, axis) for name, trainer in _compared(plan).items()}
        for name, runs in found.items():
            steps, passes = (float(np.mean([parts[each][key] for each in runs])) for key in AXES)
            mean = mean_interval(_mean_accuracies(parts, runs)).line(100, sign="")
            best = 100 * float(np.mean(_chosen_accuracies(parts, runs)))
            rows.append([axis, name, steps, passes, mean, best, *_compare_with_alone(plan, parts, runs)])
        means = {name: _mean_accuracies(parts, runs) for name, runs in found.items()}
        chosen = {name: _chosen_accuracies(parts, runs) for name, runs in found.items()}
        verdicts += _judge_pairs(means, _RIVALS, "", axis)
        verdicts += _judge_pairs(chosen, (_RIVAL,), "what a search chooses: ", axis)
    columns = ["equal", "training", "steps", "passes", "mean %", "chosen %"] + ["tau", "minus alone"] * plan.alone
    tables = [StudyTable("inherited weights, test split", columns, rows)]
    if plan.alone:
        tables.append(tau_controls(plan, alone_accuracies(plan, parts)))
    return StudyReport(hybrid_scale(plan), verdicts, tables)


def _judge_pairs(
    found: Mapping[str, Sequence[float]], rivals: Sequence[str], prefix: str, axis: str
) -> list[ClaimVerdict]:
    """Compare each hybrid strategy with each rival, where both were run."""
    return [
        judge_difference(f"{prefix}{hybrid} > {rival}, equal {axis}", paired(found[hybrid], found[rival]))
        for hybrid, rival in product(_HYBRIDS, rivals)
        if hybrid in found and rival in found
    ]


def _compare_with_alone(plan: StudyPlan, parts: StudyParts, runs: Sequence[StudyPart]) -> list[str]:
    """Return the rank correlation with training alone, and the mean difference to it; nothing where it is left out."""
    if not plan.alone:
        return []
    lone = alone_accuracies(plan, parts).mean(1)
    taus = mean_interval([kendall(parts[each]["search"], lone) for each in runs])
    return [taus.line(), f"{100 * (np.mean(_mean_accuracies(parts, runs)) - lone.mean()):+.2f}"]


# --- A4 ---------------------------------------------------------------------------------------------------------------


def _budget_places(plan: StudyPlan) -> list[int]:
    """Return the indices of five budgets in the common set, which is ordered by multiply-accumulates."""
    last = len(common_archs(plan)) - 1
    return sorted({round(last * share / (_BUDGETS - 1)) for share in range(_BUDGETS)})


def _a4_parts(plan: StudyPlan, _: StudyParts) -> list[StudyPart]:
    """Return every strategy at equal steps, and five architectures alone."""
    if not plan.alone:
        raise ValueError("A4 is a comparison with training alone; leave --inherited out")
    members = [common_archs(plan)[i] for i in _budget_places(plan)]
    supernets = [each for trainer in _compared(plan).values() for each in supernet_parts(plan, trainer, "steps")]
    return [*supernets, *(each for seeds in alone_parts(plan, members) for each in seeds)]


def _a4_judge(plan: StudyPlan, parts: StudyParts) -> StudyReport:
    """Judge inherited minus alone at equal steps, for each strategy: the mean over five budgets, paired by seed."""
    places = _budget_places(plan)
    members = [common_archs(plan)[i] for i in places]
    real = np.array([[parts[each]["test"] for each in seeds] for seeds in alone_parts(plan, members)]).T
    verdicts, rows = [], []
    for name, trainer in _compared(plan).items():
        runs = supernet_parts(plan, trainer, "steps")
        gaps = np.array([[parts[each]["test"][i] for i in places] for each in runs]) - real
        found = paired(gaps.mean(1) + 0.005, np.zeros(len(gaps)))
        question = f"{name}: the mean subnet loses less than 0.5 points (difference to -0.5)"
        verdicts.append(judge_difference(question, found))
        rows.append([name, *(f"{100 * gap:+.2f}" for gap in gaps.mean(0))])
    sizes = [f"{costs(hybrid_space(plan), arch)['macs'] / 1e3:,.0f} k" for arch in members]
    title = "inherited minus alone at equal steps, points, by multiply-accumulates"
    tables = [StudyTable(title, ("training", *sizes), rows)]
    return StudyReport(hybrid_scale(plan, ("steps",), len(places)), verdicts, tables)


CLAIMS = (
    Claim(
        "A2",
        "a convex combination of types does not train subnets",
        "weights trained under a convex combination of operations are useless to the subnet of one of them",
        "the mean one-hot subnet, norms recalibrated, is more than 10 points below that of the union teacher",
        _a2_parts,
        _a2_judge,
    ),
    Claim(
        "A3",
        "hybrid strategies against set sampling",
        "sampling sets of operations does not train a hybrid supernet; the proposed method does",
        "the mean subnet of union (V1) or progressive (V2) is better than set sampling's at equal steps",
        _a3_parts,
        _a3_judge,
    ),
    Claim(
        "A4",
        "one training, many budgets",
        "subnets of all sizes and types are usable without retraining",
        "over five budgets, inherited minus alone at equal steps is at least -0.5 points",
        _a4_parts,
        _a4_judge,
    ),
)
