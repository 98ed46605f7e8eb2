"""A control for D1: rank random NAS-Bench-201 cells, and compare with accuracies published for other images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import numpy as np

from hnas.benchmarks.papers import data, tabular, truth
from hnas.benchmarks.papers.claims import StudyPlan
from hnas.benchmarks.papers.parts import StudyPart, StudyParts, part
from hnas.benchmarks.papers.report import ClaimVerdict, StudyTable, judge_difference
from hnas.benchmarks.papers.statistics import kendall, paired
from hnas.benchmarks.papers.supernets import costs, space_of
from hnas.benchmarks.papers.tabular_plan import (
    ACCURACY,
    ANGLE,
    BLOCK,
    EPOCHS,
    EVALUATION,
    SLOTS,
    checkpoints,
    mean_and_sd,
)
from hnas.space import Arch

_CELLS = 100  # random cells
_CELL_EPOCHS = (2, 20, 200)


def cell_parts(plan: StudyPlan) -> list[StudyPart]:
    """Return the supernets of NAS-Bench-201-like cells on the study's images; the accuracies are of other images."""
    setting = tabular.RankingSetting(
        data=data.describe_images(plan.images, plan.quick),
        space="nasbench201",
        arguments=_cell_arguments(plan),
        archs=[arch.to_json() for arch in _drawn_cells(plan)],
        checkpoints=list(checkpoints(plan, _CELL_EPOCHS).values()),
        graph=True,
    )
    work = 4 * plan.passes + 4 * EVALUATION * len(setting.archs) * len(setting.checkpoints)
    return [part(tabular.ranking, seed, setting, work=work) for seed in range(plan.seeds)]


def _cell_arguments(plan: StudyPlan) -> dict[str, Any]:
    """Return the arguments of the cells' space: one cell a stage, half the channels of the benchmark."""
    return {"resolution": 8 if plan.images is None else 16, "width": 8, "cells": 1}


def _drawn_cells(plan: StudyPlan) -> list[Arch]:
    """Return random cells, the same for every seed."""
    space, rng = space_of("nasbench201", {}), Random("cells")
    return [space.sample(rng) for _ in range(8 if plan.quick else _CELLS)]


def cell_taus(plan: StudyPlan, parts: StudyParts) -> dict[int, dict[str, dict[str, list[float]]]]:
    """Return epoch -> column of the published accuracies -> metric or control -> tau of every seed."""
    archs = _drawn_cells(plan)
    assert plan.nasbench is not None
    columns = truth.read_published(plan.nasbench, archs)
    sizes = [costs(space_of("nasbench201", _cell_arguments(plan)), arch) for arch in archs]
    controls = {name: [size[name] for size in sizes] for name in ("params", "macs")}
    controls["convolutions"] = [sum("conv" in str(option) for option in arch.values()) for arch in archs]
    controls["random"] = np.random.default_rng(0).random(len(archs)).tolist()
    found: dict[int, dict[str, dict[str, list[float]]]] = {}
    for epoch, step in checkpoints(plan, _CELL_EPOCHS).items():
        runs = [parts[each]["values"][str(step)] for each in cell_parts(plan)]
        found[epoch] = {
            column: {name: [kendall(run[name], real) for run in runs] for name in tabular.METRICS}
            | {name: [kendall(values, real)] * len(runs) for name, values in controls.items()}
            for column, real in columns.items()
        }
    return found


def judge_cells(taus: Mapping[int, Mapping[str, Mapping[str, Sequence[float]]]]) -> list[ClaimVerdict]:
    """Compare metrics on cells at the last epoch, for each column of the published accuracies."""
    return [
        judge_difference(
            f"cells, {column}: {metric} > {rival}, last epoch", paired(last[metric], last[rival]), unit="tau"
        )
        for column, last in taus[EPOCHS[-1]].items()
        for metric, rival in ((BLOCK, "params"), (BLOCK, ACCURACY), (SLOTS, ANGLE))
    ]


def cell_table(taus: Mapping[int, Mapping[str, Mapping[str, Sequence[float]]]]) -> StudyTable:
    """Return the taus of cells as a table."""
    columns = [(epoch, column) for epoch, found in taus.items() for column in found]
    names = next(iter(taus[columns[0][0]].values()))
    rows = [[name, *(mean_and_sd(taus[epoch][column][name]) for epoch, column in columns)] for name in names]
    heads = [f"{column}, epoch {epoch}" for epoch, column in columns]
    title = "NAS-Bench-201 cells: tau with published accuracies on other images: mean (sd of seeds)"
    return StudyTable(title, ("metric", *heads), rows)


def cell_note(plan: StudyPlan) -> str:
    """Return the note that says what the cells were trained and compared on."""
    return (
        f"cells: {len(_drawn_cells(plan))} random ones of NAS-Bench-201, one a stage and 8 channels wide, trained "
        f"by {plan.passes:,} single-path steps on {data.sentence(plan.images, plan.quick)}, against accuracies "
        "published for larger nets and other images: a control across data sets, no reproduction"
    )
