"""B1, B2: progressive design of the search space (PAD-NAS, Xia et al., WACV 2022, arXiv 2005.07564)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import numpy as np

from hnas.benchmarks.papers import tabular, truth
from hnas.benchmarks.papers.claims import Claim, StudyPlan
from hnas.benchmarks.papers.padnas import (
    EVALUATIONS,
    MEMBERS,
    SEARCHES,
    STAGES,
    PruningSetting,
    frequencies,
    progressive,
)
from hnas.benchmarks.papers.parts import Result, StudyPart, StudyParts, part
from hnas.benchmarks.papers.report import ClaimVerdict, StudyReport, StudyTable, judge_difference
from hnas.benchmarks.papers.statistics import ceiling, kendall, mean_interval, paired
from hnas.benchmarks.papers.supernets import space_of
from hnas.benchmarks.papers.tabular_plan import digits_data, tabular_scale
from hnas.shrinking.edits import ShrinkRules, drop_worst
from hnas.space import Option, Space

_FIRST, _LAST = "I (no pruning)", "PAD (two)"


# --- B1 ---------------------------------------------------------------------------------------------------------------


def _b1_parts(plan: StudyPlan, _: StudyParts) -> list[StudyPart]:
    """Return the three supernets of every seed."""
    work = 3 * plan.passes + 12 * (EVALUATIONS + 2 * MEMBERS)
    setting = PruningSetting(data=digits_data(plan), passes=plan.passes)
    return [part(progressive, seed, setting, work=work) for seed in range(plan.seeds)]


def _b1_judge(plan: StudyPlan, parts: StudyParts) -> StudyReport:
    """Compare the supernets: tau on a common set and on each front, final spaces, and one-shot with alone."""
    table, space = truth.tabular(), space_of(tabular.SPACE, {})
    runs = [parts[each] for each in _b1_parts(plan, parts)]
    found: dict[str, dict[str, list[float]]] = {}
    rows = []
    for name in STAGES:
        found[name], size = _figures(table, space, runs, name)
        rows.append([name, size, *(mean_interval(values).line(digits=3) for values in found[name].values())])
    chance = [_chance_mean(table, space, run[_LAST]["options"], run["window"]) for run in runs]
    rows.append(["as many operations dropped at random", "", "", "", mean_interval(chance).line(digits=3), "", ""])
    columns = ("supernet", "architectures", *found[_LAST])
    title = "mean over seeds [95 % interval]; accuracies as shares"
    notes = [
        "cost is multiply-accumulates; everything is inside one window, the middle half of random architectures",
        "the common set is what PAD's final space holds; one-shot minus alone is on the search split",
        "P and PAD end at a fifth of the rate, I does not: its norms and weights see no such second stage",
    ]
    how = f"{plan.passes:,} passes in one, two or three stages; {EVALUATIONS} evaluations a search"
    tables = [StudyTable(title, columns, rows), _b1_controls(table, runs)]
    return StudyReport(tabular_scale(plan, how), _b1_verdicts(found[_FIRST], found[_LAST], chance), tables, notes)


def _figures(
    table: truth.Truth, space: Space, runs: Sequence[Result], name: str
) -> tuple[dict[str, list[float]], float]:
    """Return the figures of one supernet for every seed, and the mean size of its final space."""

    def places(archs: Sequence[Mapping[str, Any]]) -> list[int]:
        return [table.place[space.arch(arch)] for arch in archs]

    pairs = [(run, run[name]) for run in runs]
    left = [_inside(table, each["options"], run["window"]) for run, each in pairs]
    figures = {
        "tau, common": [kendall(each["common"], table.real[places(run["common"])]) for run, each in pairs],
        "tau, own front": [kendall(each["front scores"], table.real[places(each["front"])]) for _, each in pairs],
        "mean of the final space": [float(table.real[inside].mean()) for inside in left],
        "at equal MACs": [_matched_gain(table, inside) for inside in left],
        "one-shot minus alone": [
            float(np.mean(each["scores"]) - table.search[places(each["own"])].mean()) for _, each in pairs
        ],
    }
    return figures, float(np.mean([inside.sum() for inside in left]))


def _b1_verdicts(
    first: Mapping[str, Sequence[float]], last: Mapping[str, Sequence[float]], chance: Sequence[float]
) -> list[ClaimVerdict]:
    """Compare PAD with no pruning and with random pruning."""
    random, own = "random in the final space", last["mean of the final space"]
    equal = last["at equal MACs"]

    def gain(figure: str, question: str, unit: str = "points") -> ClaimVerdict:
        return judge_difference(question, paired(last[figure], first[figure]), unit)

    return [
        gain("mean of the final space", f"{random} > random in the full space"),
        judge_difference(f"{random} > in one with as many operations dropped at random", paired(own, chance)),
        judge_difference("the same at equal multiply-accumulates", paired(equal, [0.0] * len(equal))),
        gain("tau, own front", "tau on its own front: PAD > I", "tau"),
        gain("tau, common", "tau on the common set: PAD > I", "tau"),
        gain("one-shot minus alone", "one-shot minus alone: PAD > I"),
    ]


def _inside(table: truth.Truth, options: Mapping[str, Sequence[Option]], window: Sequence[float]) -> Any:
    """Return whether each architecture of the table is in the space of ``options`` and in the window."""
    low, high = window
    legal = [all(arch[name] in left for name, left in options.items()) for arch in table.archs]
    return np.array(legal) & (table.macs >= low) & (table.macs <= high)


def _matched_gain(table: truth.Truth, inside: Any) -> float:
    """Return the mean accuracy of ``inside`` minus that of all architectures within 10 % of their MACs."""
    near = np.abs(table.macs[None] / table.macs[inside][:, None] - 1) <= 0.1
    return float((table.real[inside] - (near * table.real).sum(1) / near.sum(1)).mean())


def _chance_mean(
    table: truth.Truth, space: Space, options: Mapping[str, Sequence[Option]], window: Sequence[float]
) -> float:
    """Return the mean accuracy of spaces from which equally many operations were dropped at random, over 100 draws."""
    every = [(name, option) for name, choice in space.choices.items() for option in choice.options]
    dropped = len(every) - sum(map(len, options.values()))
    found = []
    for draw in range(100):
        rng = Random(f"chance/{draw}")
        left, _ = drop_worst(space, {key: rng.random() for key in every}, ShrinkRules(dropped, force=True))
        inside = _inside(table, {name: choice.options for name, choice in left.choices.items()}, window)
        if inside.any():
            found.append(float(table.real[inside].mean()))
    return float(np.mean(found))


def _b1_controls(table: truth.Truth, runs: Sequence[Result]) -> StudyTable:
    """Return the taus that a ranking in the window has to beat, and the tau that it cannot exceed."""
    inside = _inside(table, runs[0][_FIRST]["options"], runs[0]["window"])
    real = table.real[inside]
    rows: list[list[str | float]] = [
        ["noise ceiling: halves of the seeds", ceiling(table.accuracy[inside])],
        ["params", kendall(table.params[inside], real)],
        ["multiply-accumulates", kendall(table.macs[inside], real)],
        ["random", kendall(np.random.default_rng(0).random(len(real)), real)],
    ]
    return StudyTable("controls: tau in the window of the full space", ("control", "tau"), rows)


# --- B2 ---------------------------------------------------------------------------------------------------------------


def _b2_parts(plan: StudyPlan, _: StudyParts) -> list[StudyPart]:
    """Return a supernet for every seed, searched by both."""
    setting = PruningSetting(data=digits_data(plan), passes=plan.passes)
    return [part(frequencies, seed, setting, work=plan.passes + 3 * 625) for seed in range(plan.seeds)]


def _b2_judge(plan: StudyPlan, parts: StudyParts) -> StudyReport:
    """Compare the spread of operator frequencies over search seeds, and their entropy."""
    space = space_of(tabular.SPACE, {})
    options = [len(choice.options) for choice in space.choices.values()]
    runs = [parts[each] for each in _b2_parts(plan, parts)]
    spread = {name: [float(np.std(run[name], axis=0, ddof=1).mean()) for run in runs] for name in runs[0]}
    entropy = {name: [_mean_entropy(np.array(run[name]), options) for run in runs] for name in runs[0]}
    rows = [
        [name, *(mean_interval(each[name]).line(digits=3, sign="") for each in (spread, entropy))] for name in spread
    ]
    by_ranks = "by Pareto ranks"
    verdicts = [
        judge_difference(
            f"the spread over search seeds is smaller {by_ranks}", paired(spread["single"], spread["pareto"]), "p"
        ),
        judge_difference(
            f"the distribution is sparser {by_ranks}", paired(entropy["single"], entropy["pareto"]), "entropy"
        ),
    ]
    columns = ("search", "sd of p over search seeds", "entropy of a slot (1: even)")
    title = f"operator frequencies over {SEARCHES} search seeds of one supernet"
    how = f"{plan.passes:,} single-path steps; {EVALUATIONS} evaluations a search, {SEARCHES} searches a supernet"
    return StudyReport(tabular_scale(plan, how), verdicts, [StudyTable(title, columns, rows)])


def _mean_entropy(found: Any, options: Sequence[int]) -> float:
    """Return the mean entropy of a slot's frequencies, as a share of the largest possible one."""
    total = []
    for run in found:
        at = 0
        for n in options:
            p = run[at : at + n]
            total.append(-float(sum(x * math.log(x) for x in p if x > 0)) / math.log(n))
            at += n
    return float(np.mean(total))


CLAIMS = (
    Claim(
        "B1",
        "pruning the space by Pareto frequency",
        "random architectures of the pruned space are better than those of the full one; ranking improves by stage",
        "random-in-final > random-in-full in the paired interval (the robust claim); tau on the own front rises",
        _b1_parts,
        _b1_judge,
    ),
    Claim(
        "B2",
        "frequencies by NSGA-II against single-objective evolution",
        "the operator distribution that NSGA-II gives varies far less with the seed, and is sparser",
        "the sd of p over search seeds is smaller in the paired interval over supernets",
        _b2_parts,
        _b2_judge,
    ),
)
