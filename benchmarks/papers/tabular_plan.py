"""Plan the parts that several studies on ``tabular_digits`` share, and read the table's figures for them."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import numpy as np

from hnas.benchmarks.papers import data, tabular, truth
from hnas.benchmarks.papers.claims import StudyPlan
from hnas.benchmarks.papers.data import StudyData
from hnas.benchmarks.papers.parts import StudyPart, part
from hnas.shrinking.evidence import angle
from hnas.space import Arch

EPOCHS = (1, 2, 5, 10, 20, 50, 100, 200)  # the last is the whole budget
EARLY = 2
ACCURACY, ANGLE, BLOCK, STANDARD, SLOTS = "accuracy", *(f"angle, {form}" for form in angle.FORMS)
EVALUATION = 6.0  # ranking one small architecture takes about as long as this number of path passes


def checkpoints(plan: StudyPlan, epochs: Sequence[int] = EPOCHS) -> dict[int, int]:
    """Return epoch -> step, for single paths; a quick run has two epochs."""
    chosen = (EARLY, EPOCHS[-1]) if plan.quick else epochs
    return {epoch: max(1, round(plan.passes * epoch / EPOCHS[-1])) for epoch in chosen}


def ranking_parts(plan: StudyPlan) -> list[StudyPart]:
    """Return the supernets on the tabular space, one for each seed, ranked at every checkpoint."""
    setting = tabular.RankingSetting(
        data=digits_data(plan),
        space=tabular.SPACE,
        arguments={},
        archs=[arch.to_json() for arch in judged_archs(plan)],
        checkpoints=list(checkpoints(plan).values()),
    )
    work = plan.passes + EVALUATION * len(setting.archs) * len(setting.checkpoints)
    return [part(tabular.ranking, seed, setting, work=work) for seed in range(plan.seeds)]


def digits_data(plan: StudyPlan) -> StudyData:
    """Return the data of every part on the tabular space: digits, whatever --data says."""
    return data.describe_images(None, plan.quick)


def judged_archs(plan: StudyPlan) -> list[Arch]:
    """Return all architectures of the table, or a few of them in a quick run."""
    archs = list(truth.tabular().archs)
    return Random("quick").sample(archs, 24) if plan.quick else archs


def tabular_scale(plan: StudyPlan, how: str = "") -> str:
    """Return the scale of a verdict on the table as text.

    how: a description of the runs; default: single-path steps.
    """
    return (
        f"{data.sentence(None, plan.quick)}; tabular_digits, {len(judged_archs(plan))} architectures, "
        f"{truth.tabular().accuracy.shape[1]} seeds each alone; {how or f'{plan.passes:,} single-path steps'}, "
        f"64 images a pass; {plan.seeds} seeds"
    )


def mean_and_sd(values: Sequence[float]) -> str:
    """Return the mean and the standard deviation over seeds as text."""
    return f"{np.mean(values):+.3f} ({np.std(values, ddof=1) if len(values) > 1 else 0:.3f})"
