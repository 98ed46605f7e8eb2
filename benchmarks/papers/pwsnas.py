"""D1, D2, D5: the angle as a metric (ABS, arXiv 2004.13431; PWSNAS, DOI 10.1109/TNNLS.2022.3156373)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from random import Random
from typing import Any

import numpy as np

from hnas.benchmarks.papers import cells, hybrid_plan, tabular, truth
from hnas.benchmarks.papers.claims import Claim, StudyPlan
from hnas.benchmarks.papers.parts import StudyPart, StudyParts, part
from hnas.benchmarks.papers.report import ClaimVerdict, StudyReport, StudyTable, judge_difference
from hnas.benchmarks.papers.statistics import ceiling, kendall, kendall_interval, mean_interval, paired, partial_kendall
from hnas.benchmarks.papers.supernets import SupernetSetting, space_of, supernet
from hnas.benchmarks.papers.tabular_plan import (
    ACCURACY,
    ANGLE,
    BLOCK,
    EARLY,
    EPOCHS,
    SLOTS,
    STANDARD,
    checkpoints,
    digits_data,
    judged_archs,
    mean_and_sd,
    ranking_parts,
    tabular_scale,
)
from hnas.shrinking.evidence import angle
from hnas.space import Option, Space

_RANK_SUM = "rank sum: accuracy + angle"


# --- D1 ---------------------------------------------------------------------------------------------------------------


def _d1_parts(plan: StudyPlan, _: StudyParts) -> list[StudyPart]:
    """Return the rankings, and those of cells where the published accuracies are given."""
    return [*ranking_parts(plan), *(cells.cell_parts(plan) if plan.nasbench else [])]


def _d1_judge(plan: StudyPlan, parts: StudyParts) -> StudyReport:
    """Compare the taus of the metrics over the epochs, with controls."""
    table = truth.tabular()
    at = [table.place[arch] for arch in judged_archs(plan)]
    runs = [parts[each]["values"] for each in ranking_parts(plan)]
    found = {
        epoch: {name: [kendall(run[str(step)][name], table.real[at]) for run in runs] for name in tabular.METRICS}
        for epoch, step in checkpoints(plan).items()
    }
    last, early = found[EPOCHS[-1]], found[EARLY]
    params = kendall(table.params[at], table.real[at])
    questions: list[tuple[str, Sequence[float], Sequence[float]]] = [
        ("angle > accuracy, last epoch", last[ANGLE], last[ACCURACY]),
        (f"angle > accuracy, epoch {EARLY}", early[ANGLE], early[ACCURACY]),
        ("rank sum > accuracy, last epoch", last[_RANK_SUM], last[ACCURACY]),
        ("rank sum > angle, last epoch", last[_RANK_SUM], last[ANGLE]),
        ("angle > params, last epoch", last[ANGLE], [params] * plan.seeds),
        ("angle of slots > angle, last epoch", last[SLOTS], last[ANGLE]),
        ("recalibrated > not recalibrated, last epoch", last[ACCURACY], last[tabular.METRICS[1]]),
    ]
    verdicts = [judge_difference(text, paired(a, b), "tau") for text, a, b in questions]
    rows = [[name, *(mean_and_sd(found[epoch][name]) for epoch in found)] for name in tabular.METRICS]
    title = "tau with training alone: mean (sd of seeds), by epochs"
    tables = [StudyTable(title, ("metric", *map(str, found)), rows), _d1_controls(at, runs, plan)]
    notes = ["one epoch is 1/200 of the steps"]
    if plan.nasbench:
        taus = cells.cell_taus(plan, parts)
        tables.append(cells.cell_table(taus))
        verdicts += cells.judge_cells(taus)
        notes.append(cells.cell_note(plan))
    return StudyReport(tabular_scale(plan), verdicts, tables, notes)


def _d1_controls(at: Sequence[int], runs: Sequence[Any], plan: StudyPlan) -> StudyTable:
    """Return the taus that any metric has to beat, and the tau that none can exceed."""
    table, step = truth.tabular(), str(checkpoints(plan)[EPOCHS[-1]])
    real, params = table.real[at], table.params[at]
    active = [sum(option != "identity" for option in arch.values()) for arch in judged_archs(plan)]
    columns = (("params", params), ("macs", table.macs[at]), ("latency", table.latency_ms[at]))
    rows: list[list[str | float]] = [["noise ceiling: halves of the seeds", ceiling(table.accuracy[at])]]
    rows += [[name, kendall(values, real)] for name, values in columns]
    rows += [
        ["operations that are not identity", kendall(active, real)],
        ["random", kendall(np.random.default_rng(0).random(len(active)), real)],
    ]
    for name in (ACCURACY, ANGLE, STANDARD):
        given = [partial_kendall(run[step][name], real, params) for run in runs]
        rows.append([f"{name}, given params", float(np.mean(given))])
    return StudyTable("controls: tau with training alone", ("control", "tau"), rows)


# --- D2 ---------------------------------------------------------------------------------------------------------------


def _d2_parts(plan: StudyPlan, _: StudyParts) -> list[StudyPart]:
    """Return the rankings, and a mixture whose logits are the evidence by magnitude."""
    return [*ranking_parts(plan), *_mixture_parts(plan)]


def _mixture_parts(plan: StudyPlan) -> list[StudyPart]:
    """Return the convex combinations with learned logits, for as many path passes."""
    setting = SupernetSetting(
        data=digits_data(plan),
        space=tabular.SPACE,
        arguments={},
        strategy="convex_combination",
        budget={"passes": plan.passes},
        archs=[],
        angles=False,
    )
    return [part(supernet, seed, setting, work=plan.passes) for seed in range(plan.seeds)]


def _d2_judge(plan: StudyPlan, parts: StudyParts) -> StudyReport:
    """Count how many of the best third of operations each evidence drops when it drops two thirds."""
    table = truth.tabular()
    worth = tabular.mean_by_operation(table.archs, table.real)
    order = sorted(worth, key=lambda key: -worth[key])
    best, drop = order[: len(order) // 3], 2 * len(order) // 3
    found = _count_lost(plan, parts, worth, best, drop)
    rows = [[name, float(np.mean(lost)), " ".join(map(str, lost[: plan.seeds]))] for name, lost in found.items()]
    last = f", epoch {EPOCHS[-1]}"
    rivals: dict[str, Sequence[float]] = {
        "accuracy": found[ACCURACY + last],
        "magnitude": found["magnitude"],
        "random": [float(np.mean(found["random"]))] * plan.seeds,
    }
    verdicts: list[ClaimVerdict] = []
    for metric in (ANGLE, STANDARD):
        for rival, lost in rivals.items():
            question = f"{metric} drops fewer of the best {len(best)} than {rival}"
            verdicts.append(judge_difference(question, paired(lost, found[metric + last]), "operations"))
    title = f"of the best {len(best)} of {len(order)} operations, how many are among the {drop} that are dropped"
    note = "no slot is emptied; a type may vanish, as published"
    return StudyReport(tabular_scale(plan), verdicts, [StudyTable(title, ("evidence", "mean", "seeds"), rows)], [note])


def _count_lost(
    plan: StudyPlan,
    parts: StudyParts,
    worth: Mapping[tuple[str, Option], float],
    best: Sequence[tuple[str, Option]],
    drop: int,
) -> dict[str, list[int]]:
    """Return, for each evidence, how many of ``best`` are dropped, one number for each seed."""
    space, archs, table = space_of(tabular.SPACE, {}), judged_archs(plan), truth.tabular()

    def lost(scores: Iterable[Mapping[tuple[str, Option], float]]) -> list[int]:
        return [tabular.count_lost(space, each, best, drop) for each in scores]

    found: dict[str, list[int]] = {}
    for epoch, step in checkpoints(plan).items():
        if epoch in (EARLY, EPOCHS[-1]):
            for name in tabular.METRICS:
                runs = [parts[each]["values"][str(step)][name] for each in ranking_parts(plan)]
                found[f"{name}, epoch {epoch}"] = lost(tabular.mean_by_operation(archs, run) for run in runs)
    found["magnitude"] = lost(_logits(space, parts[each]) for each in _mixture_parts(plan))
    found["random"] = lost(_random(worth, seed) for seed in range(max(plan.seeds, 100)))
    for name, values in (("params", table.params), ("multiply-accumulates", table.macs)):
        found[name] = lost([tabular.mean_by_operation(table.archs, values)])
    return found


def _logits(space: Space, result: Mapping[str, Any]) -> dict[tuple[str, Option], float]:
    return {
        (f"{slot}.op", option): value
        for slot, logits in result["logits"].items()
        for option, value in zip(space.choices[f"{slot}.op"].options, logits, strict=True)
    }


def _random(worth: Mapping[tuple[str, Option], float], seed: int) -> dict[tuple[str, Option], float]:
    rng = Random(f"random/{seed}")
    return {key: rng.random() for key in worth}


# --- D5 ---------------------------------------------------------------------------------------------------------------


def _d5_parts(plan: StudyPlan, _: StudyParts) -> list[StudyPart]:
    """Return supernets and trainings alone of the hybrid space, and the rankings of the tabular space."""
    alone = [each for seeds in hybrid_plan.alone_parts(plan, hybrid_plan.common_archs(plan)) for each in seeds]
    return [*hybrid_plan.supernet_parts(plan, hybrid_plan.TRAINERS["spos"], "passes"), *alone, *ranking_parts(plan)]


def _d5_judge(plan: StudyPlan, parts: StudyParts) -> StudyReport:
    """Compare the raw angle with forms that do not compare types with each other, in two spaces of mixed types."""
    table = hybrid_plan.alone_accuracies(plan, parts)
    runs = [parts[each] for each in hybrid_plan.supernet_parts(plan, hybrid_plan.TRAINERS["spos"], "passes")]
    verdicts, rows = [], []
    for where, taus, over_archs in (
        ("hybrid", *_hybrid_taus(runs, table.mean(1))),
        ("tabular_digits", _tabular_taus(plan, parts), dict[str, str]()),
    ):
        rows += [[where, name, mean_interval(taus[name]).line(), over_archs.get(name, "")] for name in taus]
        for name in (BLOCK, STANDARD, SLOTS):
            question = f"{name} > raw, {where}"
            verdicts.append(judge_difference(question, paired(taus[name], taus[ANGLE]), "tau"))
    columns = ("space", "metric", "tau [95 % over seeds]", "of the seeds' mean [95 % over architectures]")
    scale = f"{hybrid_plan.hybrid_scale(plan, ('passes',))}. And: {tabular_scale(plan)}"
    tables = [StudyTable("tau with training alone", columns, rows), hybrid_plan.tau_controls(plan, table)]
    return StudyReport(scale, verdicts, tables)


def _hybrid_taus(runs: Sequence[Any], real: Any) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Return the taus of every seed by metric, and the interval over architectures of the tau of the seeds' mean."""
    values = {f"angle, {form}": [run["angles"][form] for run in runs] for form in runs[0]["angles"]}
    values[ACCURACY] = [run["search"] for run in runs]
    taus = {name: [kendall(each, real) for each in listed] for name, listed in values.items()}
    over = {name: kendall_interval(np.mean(listed, 0), real).line() for name, listed in values.items()}
    return taus, over


def _tabular_taus(plan: StudyPlan, parts: StudyParts) -> dict[str, list[float]]:
    """Return the taus of every seed at the last checkpoint, by metric."""
    table, step = truth.tabular(), str(checkpoints(plan)[EPOCHS[-1]])
    real = table.real[[table.place[arch] for arch in judged_archs(plan)]]
    ranked = [parts[each]["values"][step] for each in ranking_parts(plan)]
    names = (*(f"angle, {form}" for form in angle.FORMS), ACCURACY)
    return {name: [kendall(run[name], real) for run in ranked] for name in names}


CLAIMS = (
    Claim(
        "D1",
        "the angle ranks architectures",
        "the angle ranks as well as one-shot accuracy, from the first epochs on, and varies less with the seed",
        "tau(angle) > tau(accuracy) in the paired interval over seeds; params, MACs, random are controls",
        _d1_parts,
        _d1_judge,
    ),
    Claim(
        "D2",
        "the angle keeps the best operations",
        "dropping two thirds of the operations by their angle loses none of the best, by accuracy or magnitude many",
        "fewer of the truly best third are lost by the angle, in the paired interval over seeds",
        _d2_parts,
        _d2_judge,
    ),
    Claim(
        "D5",
        "the angle in a space of mixed types",
        "not in the papers: types turn at different speeds, so the raw angle should compare types, not operations",
        "tau of the angle standardised by type, or by blocks, is higher than the raw one's in the paired interval",
        _d5_parts,
        _d5_judge,
    ),
)
