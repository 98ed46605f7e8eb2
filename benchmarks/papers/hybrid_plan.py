"""Plan the parts that several studies on the hybrid space share: supernets, trainings alone, and their controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hnas.benchmarks.papers import data
from hnas.benchmarks.papers.claims import StudyPlan
from hnas.benchmarks.papers.parts import StudyPart, StudyParts, part
from hnas.benchmarks.papers.report import StudyTable
from hnas.benchmarks.papers.statistics import ceiling, kendall
from hnas.benchmarks.papers.supernets import (
    EVALUATION,
    AloneSetting,
    SupernetSetting,
    alone,
    common_members,
    costs,
    small_hybrid,
    space_of,
    supernet,
)
from hnas.space import Arch, Space

SPACE = "hybrid_vision"
_COMMON = 16  # architectures on which everything is compared
_DIVISIONS = ["convnext+mbconv", "mbconv+fusedconv"]  # for V3
AXES = ("steps", "passes")


@dataclass(frozen=True)
class Trainer:
    """A strategy and how it is run.

    passes: path passes of a step, about, only to estimate the time.
    learn: whether architecture parameters are trained.
    times: how many steps of the strategy make one step.
    divided: whether channels may be divided among types.
    """

    strategy: str
    passes: float = 1.0
    learn: bool = True
    times: int = 1
    divided: bool = False


TRAINERS = {
    "spos": Trainer("spos"),
    "spos x4": Trainer("spos", 4, times=4),
    "set sampling": Trainer("set_sampling", 2),
    "fairnas": Trainer("fairnas", 4),
    "sandwich": Trainer("sandwich", 5),
    "union (V1)": Trainer("hybrid_union", 8),
    "progressive (V2)": Trainer("hybrid_progressive", 4.2),
    "channel split (V3)": Trainer("channel_split", 6, divided=True),
    "spos, then union": Trainer("spos_then_hybrid", 3.3),
}


def hybrid_space(plan: StudyPlan) -> Space:
    """Return the space of the studies."""
    return space_of(SPACE, small_hybrid(plan.images))


def common_archs(plan: StudyPlan) -> list[Arch]:
    """Return the common set, ordered by multiply-accumulates."""
    return common_members(SPACE, small_hybrid(plan.images), 4 if plan.quick else _COMMON, 16 if plan.quick else 256)


def _budget(plan: StudyPlan, axis: str) -> dict[str, int]:
    """Return the path passes of a run, or a quarter as many steps."""
    return {"passes": plan.passes} if axis == "passes" else {"steps": plan.passes // 4}


def supernet_parts(plan: StudyPlan, trainer: Trainer, axis: str) -> list[StudyPart]:
    """Return a supernet for every seed, scored on the common set; ``axis`` is "steps" or "passes"."""
    budget = _budget(plan, axis)
    setting = SupernetSetting(
        data=data.describe_images(plan.images, plan.quick),
        space=SPACE,
        arguments=small_hybrid(plan.images) | ({"divisions": _DIVISIONS} if trainer.divided else {}),
        strategy=trainer.strategy,
        budget=budget,
        archs=[arch.to_json() for arch in common_archs(plan)],
        learn=trainer.learn,
        times=trainer.times,
    )
    work = budget.get("passes", 0) or budget["steps"] * trainer.passes
    work += EVALUATION * len(setting.archs)
    return [part(supernet, seed, setting, work=work) for seed in range(plan.seeds)]


def alone_parts(plan: StudyPlan, members: Sequence[Arch]) -> list[list[StudyPart]]:
    """Return, for each member, its training alone with every seed, for the steps of the axis of equal steps."""
    return [[_alone_part(plan, arch, seed) for seed in range(plan.seeds)] for arch in members]


def _alone_part(plan: StudyPlan, arch: Arch, seed: int) -> StudyPart:
    setting = AloneSetting(
        data=data.describe_images(plan.images, plan.quick),
        space=SPACE,
        arguments=small_hybrid(plan.images),
        arch=arch.to_json(),
        steps=_budget(plan, "steps")["steps"],
    )
    return part(alone, seed, setting, work=setting.steps + EVALUATION)


def hybrid_scale(plan: StudyPlan, axes: Sequence[str] = AXES, judged: int = 0) -> str:
    """Return the scale of a verdict; ``judged`` architectures, where that is not the whole common set."""
    spent = {"steps": f"{plan.passes // 4:,} steps", "passes": f"{plan.passes:,} path passes"}
    return (
        f"{data.sentence(plan.images, plan.quick)}; {SPACE} with five slots of four types, {hybrid_space(plan).size:,} "
        f"architectures; {' or '.join(spent[axis] for axis in axes)} of 64 images; "
        f"{judged or len(common_archs(plan))} architectures judged; {plan.seeds} seeds"
        f"{'' if plan.alone else '; nothing trained alone'}"
    )


def alone_accuracies(plan: StudyPlan, parts: StudyParts) -> Any:
    """Return the test accuracies of the common set, trained alone: [architectures][seeds]."""
    return np.array([[parts[each]["test"] for each in seeds] for seeds in alone_parts(plan, common_archs(plan))])


def tau_controls(plan: StudyPlan, table: Any) -> StudyTable:
    """Return the taus that a rank correlation has to beat, and the tau that it cannot exceed.

    table: the accuracies of training alone, [architectures][seeds].
    """
    real = table.mean(1)
    sizes = [costs(hybrid_space(plan), arch) for arch in common_archs(plan)]
    spread, noise = float(real.std(ddof=1)), float(table.std(1, ddof=1).mean()) if table.shape[1] > 1 else 0.0
    rows: list[list[str | float]] = [
        ["noise ceiling: halves of the seeds", ceiling(table)],
        ["params", kendall([size["params"] for size in sizes], real)],
        ["multiply-accumulates", kendall([size["macs"] for size in sizes], real)],
        ["random", kendall(np.random.default_rng(0).random(len(real)), real)],
        ["sd of architectures, points", 100 * spread],
        ["sd of seeds, points", 100 * noise],
    ]
    return StudyTable("controls: tau with the accuracy of training alone", ("control", "value"), rows)
