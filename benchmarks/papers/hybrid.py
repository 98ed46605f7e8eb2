"""A2, A3, A4: hybrid operations in one supernet (Shin, Cho, Kim, IEEE Access 2024, DOI 10.1109/ACCESS.2024.3350732).

The paper's text was not to be had; its three claims come from the abstract, and the strategies are reconstructions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from hnas.benchmarks.papers import data
from hnas.benchmarks.papers.claims import Claim, Plan
from hnas.benchmarks.papers.parts import Part, Parts, part
from hnas.benchmarks.papers.report import Report, Table, Verdict, verdict
from hnas.benchmarks.papers.statistics import ceiling, kendall, mean_interval, paired
from hnas.benchmarks.papers.supernets import EVALUATION, alone, common, costs, small_hybrid, space_of, supernet
from hnas.space import Arch, Space

SPACE = "hybrid_vision"
COMMON = 16  # architectures on which everything is compared
_BUDGETS = 5  # of them, for A4
DIVISIONS = ["convnext+mbconv", "mbconv+fusedconv"]  # for V3
_AXES = ("steps", "passes")


@dataclass(frozen=True)
class _Trainer:
    """A strategy and how it is run; ``passes`` a step, about, only to estimate the time."""

    strategy: str
    passes: float = 1.0
    learn: bool = True
    times: int = 1
    divided: bool = False  # channels may be divided among types


TRAINERS = {
    "spos": _Trainer("spos"),
    "spos x4": _Trainer("spos", 4, times=4),
    "set sampling": _Trainer("set_sampling", 2),
    "fairnas": _Trainer("fairnas", 4),
    "sandwich": _Trainer("sandwich", 5),
    "union (V1)": _Trainer("hybrid_union", 8),
    "progressive (V2)": _Trainer("hybrid_progressive", 4.2),
    "channel split (V3)": _Trainer("channel_split", 6, divided=True),
    "spos, then union": _Trainer("spos_then_hybrid", 3.3),
}
_CONVEX = {
    "convex, learned": _Trainer("convex_combination", 2.6),
    "convex, uniform": _Trainer("convex_combination", 2.6, learn=False),
}
_PROPOSED = "union (V1)"
_HYBRIDS = (_PROPOSED, "progressive (V2)", "channel split (V3)", "sandwich", "spos, then union")
_RIVAL = "spos"  # the simplest of all
_RIVALS = ("set sampling", _RIVAL)


def compared(plan: Plan) -> dict[str, _Trainer]:
    """The trainings that A3 and A4 compare."""
    if unknown := [name for name in plan.only if name not in TRAINERS]:
        raise ValueError(f"no training {unknown[0]!r}; known: {'; '.join(TRAINERS)}")
    return {name: trainer for name, trainer in TRAINERS.items() if name in (plan.only or TRAINERS)}


def space(plan: Plan) -> Space:
    """The space of the studies in this file."""
    return space_of(SPACE, small_hybrid(plan.images))


def archs(plan: Plan) -> list[Arch]:
    """The common set."""
    return common(SPACE, small_hybrid(plan.images), 4 if plan.quick else COMMON, 16 if plan.quick else 256)


def budget(plan: Plan, axis: str) -> dict[str, int]:
    """Path passes of a run, or a quarter as many steps."""
    return {"passes": plan.passes} if axis == "passes" else {"steps": plan.passes // 4}


def trained(plan: Plan, trainer: _Trainer, axis: str) -> list[Part]:
    """A supernet for every seed, scored on the common set."""
    total = budget(plan, axis)
    work = total.get("passes", 0) or total["steps"] * trainer.passes
    members = [arch.to_json() for arch in archs(plan)]
    arguments = small_hybrid(plan.images) | ({"divisions": DIVISIONS} if trainer.divided else {})
    setting: dict[str, Any] = {"space": SPACE, "arguments": arguments, "archs": members, "budget": total}
    named: dict[str, Any] = {
        "strategy": trainer.strategy,
        "options": {},
        "learn": trainer.learn,
        "times": trainer.times,
    }
    work += EVALUATION * len(members)
    return [part(supernet, seed, work=work, **_base(plan), **setting, **named) for seed in range(plan.seeds)]


def truth(plan: Plan, members: Sequence[Arch]) -> list[list[Part]]:
    """Each member trained alone for the steps of the axis of equal steps, with every seed."""
    setting: dict[str, Any] = {
        "space": SPACE,
        "arguments": small_hybrid(plan.images),
        "steps": budget(plan, "steps")["steps"],
    }
    work = setting["steps"] + EVALUATION
    return [
        [part(alone, s, work=work, **_base(plan), **setting, arch=arch.to_json()) for s in range(plan.seeds)]
        for arch in members
    ]


def _base(plan: Plan) -> dict[str, Any]:
    return {"of": data.described(plan.images, plan.quick), "quick": plan.quick}


def scale(plan: Plan, axes: Sequence[str] = _AXES, judged: int = 0) -> str:
    """What a verdict of this file holds for; judged: how many architectures, where not the whole common set."""
    spent = {"steps": f"{plan.passes // 4:,} steps", "passes": f"{plan.passes:,} path passes"}
    return (
        f"{data.sentence(plan.images, plan.quick)}; {SPACE} with five slots of four types, {space(plan).size:,} "
        f"architectures; {' or '.join(spent[axis] for axis in axes)} of 64 images; "
        f"{judged or len(archs(plan))} architectures judged; {plan.seeds} seeds"
        f"{'' if plan.alone else '; nothing trained alone'}"
    )


def means(parts: Parts, wanted: Sequence[Part], split: str = "test") -> list[float]:
    """The mean accuracy over the common set, for each seed."""
    return [float(np.mean(parts[each][split])) for each in wanted]


def chosen(parts: Parts, wanted: Sequence[Part]) -> list[float]:
    """The test accuracy of the architecture that the search split ranks first, for each seed."""
    return [float(parts[each]["test"][int(np.argmax(parts[each]["search"]))]) for each in wanted]


# --- A2 ---------------------------------------------------------------------------------------------------------------


def _a2_parts(plan: Plan, _: Parts) -> list[Part]:
    """Convex combination, learned and uniform, against one-hot strategies, on both axes."""
    names = {**_CONVEX, "spos": TRAINERS["spos"], _PROPOSED: TRAINERS[_PROPOSED]}
    return [each for axis in _AXES for trainer in names.values() for each in trained(plan, trainer, axis)]


def _a2_judge(plan: Plan, parts: Parts) -> Report:
    """How far the mean one-hot subnet of a mixture lies below that of the proposed strategy."""
    verdicts: list[Verdict] = []
    rows = []
    for axis in _AXES:
        proposed = means(parts, trained(plan, TRAINERS[_PROPOSED], axis))
        for name, trainer in {**_CONVEX, "spos": TRAINERS["spos"], _PROPOSED: TRAINERS[_PROPOSED]}.items():
            found = means(parts, trained(plan, trainer, axis))
            rows.append([axis, name, 100 * float(np.mean(found)), 100 * float(np.max(found))])
            if name in _CONVEX:
                question = f"{name} is more than 10 points below {_PROPOSED}, equal {axis}"
                verdicts.append(verdict(question, paired(proposed, found), above=0.10))
    table = Table("one-hot subnets, test accuracy in %", ("equal", "training", "mean", "best seed"), rows)
    return Report(scale(plan), verdicts, [table])


# --- A3 ---------------------------------------------------------------------------------------------------------------


def _a3_parts(plan: Plan, _: Parts) -> list[Part]:
    """Every strategy on both axes, and the truth."""
    supernets = [each for axis in _AXES for trainer in compared(plan).values() for each in trained(plan, trainer, axis)]
    return [*supernets, *(each for seeds in truth(plan, archs(plan) if plan.alone else []) for each in seeds)]


def _a3_judge(plan: Plan, parts: Parts) -> Report:
    """Hybrid strategies against set sampling, with the rank correlation and its ceiling beside it."""
    verdicts, rows = [], []
    for axis in _AXES:
        found = {name: trained(plan, trainer, axis) for name, trainer in compared(plan).items()}
        for name, runs in found.items():
            steps, passes = (float(np.mean([parts[each][key] for each in runs])) for key in _AXES)
            mean, best = mean_interval(means(parts, runs)), 100 * float(np.mean(chosen(parts, runs)))
            rows.append([axis, name, steps, passes, mean.line(100, sign=""), best, *beside(plan, parts, runs)])
        for hybrid, rival in product(_HYBRIDS, _RIVALS):
            if hybrid in found and rival in found:
                difference = paired(means(parts, found[hybrid]), means(parts, found[rival]))
                verdicts.append(verdict(f"{hybrid} > {rival}, equal {axis}", difference))
        for hybrid in _HYBRIDS:
            if hybrid in found and _RIVAL in found:
                difference = paired(chosen(parts, found[hybrid]), chosen(parts, found[_RIVAL]))
                verdicts.append(verdict(f"what a search chooses: {hybrid} > {_RIVAL}, equal {axis}", difference))
    columns = ["equal", "training", "steps", "passes", "mean %", "chosen %"] + ["tau", "minus alone"] * plan.alone
    table = Table("inherited weights, test split", columns, rows)
    return Report(scale(plan), verdicts, [table, controls(plan, real(plan, parts))] if plan.alone else [table])


def real(plan: Plan, parts: Parts) -> Any:
    """[architectures][seeds]: the test accuracy of the common set, trained alone."""
    return np.array([[parts[each]["test"] for each in seeds] for seeds in truth(plan, archs(plan))])


def beside(plan: Plan, parts: Parts, runs: Sequence[Part]) -> list[str]:
    """Rank correlation with the truth, and how far the mean lies from it, where there is a truth."""
    if not plan.alone:
        return []
    alone = real(plan, parts).mean(1)
    taus = mean_interval([kendall(parts[each]["search"], alone) for each in runs])
    return [taus.line(), f"{100 * (np.mean(means(parts, runs)) - alone.mean()):+.2f}"]


def controls(plan: Plan, table: Any) -> Table:
    """What a rank correlation has to beat, and what it cannot exceed."""
    real = table.mean(1)
    sizes = [costs(space(plan), arch) for arch in archs(plan)]
    spread, noise = float(real.std(ddof=1)), float(table.std(1, ddof=1).mean()) if table.shape[1] > 1 else 0.0
    rows: list[list[str | float]] = [
        ["noise ceiling: halves of the seeds", ceiling(table)],
        ["params", kendall([size["params"] for size in sizes], real)],
        ["multiply-accumulates", kendall([size["macs"] for size in sizes], real)],
        ["random", kendall(np.random.default_rng(0).random(len(real)), real)],
        ["sd of architectures, points", 100 * spread],
        ["sd of seeds, points", 100 * noise],
    ]
    return Table("controls: tau with the accuracy of training alone", ("control", "value"), rows)


# --- A4 ---------------------------------------------------------------------------------------------------------------


def five(plan: Plan) -> list[int]:
    """The places in the common set, which is ordered by multiply-accumulates, of five budgets."""
    last = len(archs(plan)) - 1
    return sorted({round(last * share / (_BUDGETS - 1)) for share in range(_BUDGETS)})


def _a4_parts(plan: Plan, _: Parts) -> list[Part]:
    """Every strategy at equal steps, and the five architectures alone."""
    if not plan.alone:
        raise ValueError("A4 is a comparison with training alone; leave --inherited out")
    members = [archs(plan)[i] for i in five(plan)]
    supernets = [each for trainer in compared(plan).values() for each in trained(plan, trainer, "steps")]
    return [*supernets, *(each for seeds in truth(plan, members) for each in seeds)]


def _a4_judge(plan: Plan, parts: Parts) -> Report:
    """Inherited minus alone, at equal steps, for each strategy; the mean over five budgets, paired by seed."""
    places = five(plan)
    members = [archs(plan)[i] for i in places]
    real = np.array([[parts[each]["test"] for each in seeds] for seeds in truth(plan, members)]).T
    verdicts, rows = [], []
    for name, trainer in compared(plan).items():
        got = np.array([[parts[each]["test"][i] for i in places] for each in trained(plan, trainer, "steps")])
        gaps = got - real
        found = paired(gaps.mean(1) + 0.005, np.zeros(len(gaps)))
        verdicts.append(verdict(f"{name}: the mean subnet loses less than 0.5 points (difference to -0.5)", found))
        rows.append([name, *(f"{100 * gap:+.2f}" for gap in gaps.mean(0))])
    sizes = [f"{costs(space(plan), arch)['macs'] / 1e3:,.0f} k" for arch in members]
    title = "inherited minus alone at equal steps, points, by multiply-accumulates"
    return Report(scale(plan, ("steps",), len(places)), verdicts, [Table(title, ("training", *sizes), rows)])


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
