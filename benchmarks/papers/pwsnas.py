"""D1, D2, D5: the angle as a metric (ABS, arXiv 2004.13431; PWSNAS, DOI 10.1109/TNNLS.2022.3156373)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from random import Random
from typing import Any

import numpy as np

from hnas.benchmarks.papers import data, hybrid, tabular, truth
from hnas.benchmarks.papers.claims import Claim, Plan
from hnas.benchmarks.papers.parts import Part, Parts, part
from hnas.benchmarks.papers.report import Report, Table, Verdict, verdict
from hnas.benchmarks.papers.statistics import ceiling, kendall, kendall_interval, mean_interval, paired, partial_kendall
from hnas.benchmarks.papers.supernets import costs, space_of, supernet
from hnas.shrinking.evidence import angle
from hnas.space import Arch, Option, Space

_EPOCHS = (1, 2, 5, 10, 20, 50, 100, 200)  # the last is the whole budget
_EARLY = 2
ACCURACY, ANGLE, BLOCK, STANDARD, SLOTS = "accuracy", *(f"angle, {form}" for form in angle.FORMS)
_RANK_SUM = "rank sum: accuracy + angle"
CELLS = 100  # of NAS-Bench-201
_CELL_EPOCHS = (2, 20, 200)
EVALUATION = 6.0  # path passes that ranking one small architecture takes, about


def checkpoints(plan: Plan, of: Sequence[int] = _EPOCHS) -> dict[int, int]:
    """Epoch -> step, for single paths; a quick run has two."""
    epochs = (_EARLY, _EPOCHS[-1]) if plan.quick else of
    return {epoch: max(1, round(plan.passes * epoch / _EPOCHS[-1])) for epoch in epochs}


def rankings(plan: Plan) -> list[Part]:
    """Supernets on the tabular space, ranked at every checkpoint."""
    archs = [arch.to_json() for arch in members(plan)]
    steps = list(checkpoints(plan).values())
    setting: dict[str, Any] = {"space": tabular.SPACE, "arguments": {}, "archs": archs, "checkpoints": steps}
    work = plan.passes + EVALUATION * len(archs) * len(steps)
    return [part(tabular.ranking, s, work=work, **digits(plan), **setting) for s in range(plan.seeds)]


def digits(plan: Plan) -> dict[str, Any]:
    """The setting of every part on the tabular space: its images are digits, whatever --data says."""
    return {"of": data.described(None, plan.quick), "quick": plan.quick}


def members(plan: Plan) -> list[Arch]:
    """All architectures of the table, or some of them."""
    archs = list(truth.tabular().archs)
    return Random("quick").sample(archs, 24) if plan.quick else archs


def reality(plan: Plan) -> dict[str, Any]:
    """Columns of the table for ``members``."""
    table = truth.tabular()
    at = [table.place[arch] for arch in members(plan)]
    return {
        "accuracy": table.accuracy[at],
        "real": table.real[at],
        "params": table.params[at],
        "macs": table.macs[at],
        "latency": table.latency_ms[at],
    }


def scale(plan: Plan, how: str = "") -> str:
    """What a verdict on the table holds for; how: what is run, where that is not single paths all along."""
    return (
        f"{data.sentence(None, plan.quick)}; tabular_digits, {len(members(plan))} architectures, "
        f"{truth.tabular().accuracy.shape[1]} seeds each alone; {how or f'{plan.passes:,} single-path steps'}, "
        f"64 images a pass; {plan.seeds} seeds"
    )


# --- D1 ---------------------------------------------------------------------------------------------------------------


def _d1_parts(plan: Plan, _: Parts) -> list[Part]:
    """The rankings, and those of cells where the published accuracies are at hand."""
    return [*rankings(plan), *(cells(plan) if plan.nasbench else [])]


def cells(plan: Plan) -> list[Part]:
    """Supernets of NAS-Bench-201-like cells on the images at hand; the accuracies are of other images."""
    archs = [arch.to_json() for arch in drawn_cells(plan)]
    steps = list(checkpoints(plan, _CELL_EPOCHS).values())
    setting: dict[str, Any] = {"space": "nasbench201", "arguments": cell_arguments(plan), "archs": archs}
    of: dict[str, Any] = {"of": data.described(plan.images, plan.quick), "quick": plan.quick}
    work = 4 * plan.passes + 4 * EVALUATION * len(archs) * len(steps)
    ranking = partial(part, tabular.ranking, work=work, checkpoints=steps, graph=True)
    return [ranking(seed, **of, **setting) for seed in range(plan.seeds)]


def cell_arguments(plan: Plan) -> dict[str, Any]:
    """The arguments of the cells' space: one cell a stage, half the benchmark's channels."""
    return {"resolution": 8 if plan.images is None else 16, "width": 8, "cells": 1}


def drawn_cells(plan: Plan) -> list[Arch]:
    """Random cells, the same for every seed."""
    space, rng = space_of("nasbench201", {}), Random("cells")
    return [space.sample(rng) for _ in range(8 if plan.quick else CELLS)]


def _d1_judge(plan: Plan, parts: Parts) -> Report:
    """Tau of every metric over the epochs, with controls."""
    real = reality(plan)
    runs = [parts[each]["values"] for each in rankings(plan)]
    found = {
        epoch: {name: [kendall(run[str(step)][name], real["real"]) for run in runs] for name in tabular.METRICS}
        for epoch, step in checkpoints(plan).items()
    }
    last, early = found[_EPOCHS[-1]], found[_EARLY]
    params = kendall(real["params"], real["real"])
    questions: list[tuple[str, Sequence[float], Sequence[float]]] = [
        ("angle > accuracy, last epoch", last[ANGLE], last[ACCURACY]),
        (f"angle > accuracy, epoch {_EARLY}", early[ANGLE], early[ACCURACY]),
        ("rank sum > accuracy, last epoch", last[_RANK_SUM], last[ACCURACY]),
        ("rank sum > angle, last epoch", last[_RANK_SUM], last[ANGLE]),
        ("angle > params, last epoch", last[ANGLE], [params] * plan.seeds),
        ("angle of slots > angle, last epoch", last[SLOTS], last[ANGLE]),
        ("recalibrated > not recalibrated, last epoch", last[ACCURACY], last[tabular.METRICS[1]]),
    ]
    verdicts = [verdict(text, paired(a, b), "tau") for text, a, b in questions]
    rows = [[name, *(_spread(found[epoch][name]) for epoch in found)] for name in tabular.METRICS]
    title = "tau with training alone: mean (sd of seeds), by epochs"
    tables = [Table(title, ("metric", *map(str, found)), rows), _controls(real, runs, plan)]
    notes = ["one epoch is 1/200 of the steps"]
    if plan.nasbench:
        taus = _published(plan, parts)
        tables.append(_cells(taus))
        for column, last in taus[_EPOCHS[-1]].items():
            for metric, rival in ((BLOCK, "params"), (BLOCK, ACCURACY), (SLOTS, ANGLE)):
                question = f"cells, {column}: {metric} > {rival}, last epoch"
                verdicts.append(verdict(question, paired(last[metric], last[rival]), "tau"))
        notes.append(
            f"cells: {len(drawn_cells(plan))} random ones of NAS-Bench-201, one a stage and 8 channels wide, trained "
            f"by {plan.passes:,} single-path steps on {data.sentence(plan.images, plan.quick)}, against accuracies "
            "published for larger nets and other images: a control across data sets, no reproduction"
        )
    return Report(scale(plan), verdicts, tables, notes)


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):+.3f} ({np.std(values, ddof=1) if len(values) > 1 else 0:.3f})"


def _controls(real: Mapping[str, Any], runs: Sequence[Any], plan: Plan) -> Table:
    """What any metric has to beat, and what none can exceed."""
    step = str(checkpoints(plan)[_EPOCHS[-1]])
    active = [sum(option != "identity" for option in arch.values()) for arch in members(plan)]
    rows: list[list[str | float]] = [["noise ceiling: halves of the seeds", ceiling(real["accuracy"])]]
    rows += [[name, kendall(real[name], real["real"])] for name in ("params", "macs", "latency")]
    rows += [
        ["operations that are not identity", kendall(active, real["real"])],
        ["random", kendall(np.random.default_rng(0).random(len(active)), real["real"])],
    ]
    for name in (ACCURACY, ANGLE, STANDARD):
        given = [partial_kendall(run[step][name], real["real"], real["params"]) for run in runs]
        rows.append([f"{name}, given params", float(np.mean(given))])
    return Table("controls: tau with training alone", ("control", "tau"), rows)


def _published(plan: Plan, parts: Parts) -> dict[int, dict[str, dict[str, list[float]]]]:
    """Epoch -> column of the published accuracies -> metric or control -> tau of every seed."""
    archs = drawn_cells(plan)
    assert plan.nasbench is not None
    columns = truth.published(plan.nasbench, archs)
    sizes = [costs(space_of("nasbench201", cell_arguments(plan)), arch) for arch in archs]
    controls = {name: [size[name] for size in sizes] for name in ("params", "macs")}
    controls["convolutions"] = [sum("conv" in str(option) for option in arch.values()) for arch in archs]
    controls["random"] = np.random.default_rng(0).random(len(archs)).tolist()
    found: dict[int, dict[str, dict[str, list[float]]]] = {}
    for epoch, step in checkpoints(plan, _CELL_EPOCHS).items():
        runs = [parts[each]["values"][str(step)] for each in cells(plan)]
        found[epoch] = {
            column: {name: [kendall(run[name], real) for run in runs] for name in tabular.METRICS}
            | {name: [kendall(values, real)] * len(runs) for name, values in controls.items()}
            for column, real in columns.items()
        }
    return found


def _cells(taus: Mapping[int, Mapping[str, Mapping[str, Sequence[float]]]]) -> Table:
    """The taus of cells for a person."""
    columns = [(epoch, column) for epoch, found in taus.items() for column in found]
    names = next(iter(taus[columns[0][0]].values()))
    rows = [[name, *(_spread(taus[epoch][column][name]) for epoch, column in columns)] for name in names]
    heads = [f"{column}, epoch {epoch}" for epoch, column in columns]
    title = "NAS-Bench-201 cells: tau with published accuracies on other images: mean (sd of seeds)"
    return Table(title, ("metric", *heads), rows)


# --- D2 ---------------------------------------------------------------------------------------------------------------


def _d2_parts(plan: Plan, _: Parts) -> list[Part]:
    """The rankings, and a mixture whose logits are the evidence by magnitude."""
    return [*rankings(plan), *mixtures(plan)]


def mixtures(plan: Plan) -> list[Part]:
    """A convex combination with learned logits, for as many path passes."""
    setting: dict[str, Any] = {"space": tabular.SPACE, "arguments": {}, "archs": [], "angles": False}
    how: dict[str, Any] = {"strategy": "convex_combination", "options": {}, "budget": {"passes": plan.passes}}
    return [part(supernet, s, work=plan.passes, **digits(plan), **setting, **how) for s in range(plan.seeds)]


def _d2_judge(plan: Plan, parts: Parts) -> Report:
    """Of the truly best third of operations, how many each evidence drops when it drops two thirds."""
    space, archs = space_of(tabular.SPACE, {}), members(plan)
    table = truth.tabular()
    worth = tabular.by_operation(table.archs, table.real)
    order = sorted(worth, key=lambda key: -worth[key])
    best, drop = order[: len(order) // 3], 2 * len(order) // 3
    found: dict[str, list[int]] = {}
    for epoch, step in checkpoints(plan).items():
        if epoch not in (_EARLY, _EPOCHS[-1]):
            continue
        for name in tabular.METRICS:
            runs = [parts[each]["values"][str(step)][name] for each in rankings(plan)]
            scores = [tabular.by_operation(archs, run) for run in runs]
            found[f"{name}, epoch {epoch}"] = [tabular.lost(space, each, best, drop) for each in scores]
    found["magnitude"] = [tabular.lost(space, _logits(space, parts[each]), best, drop) for each in mixtures(plan)]
    found["random"] = [tabular.lost(space, _random(worth, seed), best, drop) for seed in range(max(plan.seeds, 100))]
    for name, values in (("params", table.params), ("multiply-accumulates", table.macs)):
        found[name] = [tabular.lost(space, tabular.by_operation(table.archs, values), best, drop)]
    rows = [[name, float(np.mean(lost)), " ".join(map(str, lost[: plan.seeds]))] for name, lost in found.items()]
    last = f", epoch {_EPOCHS[-1]}"
    chance = [float(np.mean(found["random"]))] * plan.seeds
    rivals: dict[str, Sequence[float]] = {
        "accuracy": found[ACCURACY + last],
        "magnitude": found["magnitude"],
        "random": chance,
    }
    verdicts: list[Verdict] = []
    for metric in (ANGLE, STANDARD):
        for rival, lost in rivals.items():
            question = f"{metric} drops fewer of the best {len(best)} than {rival}"
            verdicts.append(verdict(question, paired(lost, found[metric + last]), "operations"))
    title = f"of the best {len(best)} of {len(order)} operations, how many are among the {drop} that are dropped"
    note = "no slot is emptied; a type may vanish, as published"
    return Report(scale(plan), verdicts, [Table(title, ("evidence", "mean", "seeds"), rows)], [note])


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


def _d5_parts(plan: Plan, _: Parts) -> list[Part]:
    """Supernets and truth of the hybrid space, and the rankings of the tabular one."""
    alone = [each for seeds in hybrid.truth(plan, hybrid.archs(plan)) for each in seeds]
    return [*hybrid.trained(plan, hybrid.TRAINERS["spos"], "passes"), *alone, *rankings(plan)]


def _d5_judge(plan: Plan, parts: Parts) -> Report:
    """The raw angle against two that do not compare types with each other, in two spaces of mixed types."""
    table = np.array([[parts[p]["test"] for p in seeds] for seeds in hybrid.truth(plan, hybrid.archs(plan))])
    runs = [parts[each] for each in hybrid.trained(plan, hybrid.TRAINERS["spos"], "passes")]
    forms = {form: f"angle, {form}" for form in runs[0]["angles"]}
    found = {
        "hybrid": {name: [kendall(run["angles"][form], table.mean(1)) for run in runs] for form, name in forms.items()}
    }
    found["hybrid"][ACCURACY] = [kendall(run["search"], table.mean(1)) for run in runs]
    step, real = str(checkpoints(plan)[_EPOCHS[-1]]), reality(plan)["real"]
    ranked = [parts[each]["values"][step] for each in rankings(plan)]
    names = (*forms.values(), ACCURACY)
    found["tabular_digits"] = {name: [kendall(run[name], real) for run in ranked] for name in names}
    drawn = {
        name: kendall_interval(np.mean([run["angles"][form] for run in runs], 0), table.mean(1)).line()
        for form, name in forms.items()
    }
    drawn[ACCURACY] = kendall_interval(np.mean([run["search"] for run in runs], 0), table.mean(1)).line()
    verdicts, rows = [], []
    for where, taus in found.items():
        over = drawn if where == "hybrid" else {}
        rows += [[where, name, mean_interval(values).line(), over.get(name, "")] for name, values in taus.items()]
        for name in (BLOCK, STANDARD, SLOTS):
            verdicts.append(verdict(f"{name} > raw, {where}", paired(taus[name], taus[ANGLE]), "tau"))
    columns = ("space", "metric", "tau [95 % over seeds]", "of the seeds' mean [95 % over architectures]")
    both = f"{hybrid.scale(plan, ('passes',))}. And: {scale(plan)}"
    return Report(both, verdicts, [Table("tau with training alone", columns, rows), hybrid.controls(plan, table)])


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
