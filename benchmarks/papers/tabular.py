"""Rank architectures and operations on ``tabular_digits``, where every architecture was trained alone.

The table is read only when a study is judged. A run sees the images of digits, as any search does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from hnas.benchmarks.papers.data import StudyData
from hnas.benchmarks.papers.parts import Result
from hnas.benchmarks.papers.supernets import space_of, train_on_budget
from hnas.shrinking.angles import AngleBasis
from hnas.shrinking.edits import ShrinkRules, drop_worst
from hnas.shrinking.evidence import angle
from hnas.shrinking.graph import PathGraph
from hnas.space import Arch, Option, Space
from hnas.spaces import nasbench201
from hnas.study import Study
from hnas.supernet import Stats, Supernet

Floats = NDArray[np.float64]
SPACE = "tabular_digits"
_SHARED = 32  # random architectures whose moments are pooled where norms are not recalibrated
METRICS = (
    "accuracy",
    "accuracy, not recalibrated",
    *(f"angle, {form}" for form in angle.FORMS),
    "rank sum: accuracy + angle",
    "rank sum: accuracy + standardised",
)


@dataclass(frozen=True, kw_only=True)
class RankingSetting:
    """The setting of a part that ranks architectures.

    archs: the architectures, as JSON.
    checkpoints: the steps after which they are ranked.
    graph: whether the space is NAS-Bench-201, whose slots are edges of a cell.
    """

    data: StudyData
    space: str
    arguments: Mapping[str, Any]
    archs: Sequence[Mapping[str, Any]]
    checkpoints: Sequence[int]
    graph: bool = False


def ranking(images: Path | None, seed: int, setting: RankingSetting) -> Result:
    """Train a supernet by single paths, and rank architectures by every metric at each checkpoint.

    The result holds step -> metric -> one value for each architecture.
    """
    whole = space_of(setting.space, setting.arguments)
    members = [whole.arch(arch) for arch in setting.archs]
    study = Study(Supernet(whole, seed), setting.data.task(images, seed), seed=seed)
    found: dict[str, dict[str, list[float]]] = {}
    paths = _cell_graph(whole) if setting.graph else None

    def advance(step: int, _: float) -> None:
        if step in setting.checkpoints:
            values = _rank(study, members, paths)
            found[str(step)] = {name: [round(float(x), 5) for x in row] for name, row in values.items()}

    spent = train_on_budget(study, "spos", {"steps": max(setting.checkpoints)}, advance=advance)
    return {**spent, "values": found}


def _rank(study: Study, archs: Sequence[Arch], graph: PathGraph | None = None) -> dict[str, Floats]:
    """Return every metric of every architecture, on the search split; larger is better."""
    accuracy = np.array([study.accuracy(arch) for arch in archs])
    turned = {form: angle.angles_of(study, archs, form=form, basis=AngleBasis(graph=graph)) for form in angle.FORMS}
    values = [accuracy, _uncalibrated_accuracy(study, archs), *turned.values()]
    ranks = {name: _mean_ranks(each) for name, each in turned.items()}
    values += [_mean_ranks(accuracy) + ranks["raw"], _mean_ranks(accuracy) + ranks["standardised"]]
    return dict(zip(METRICS, values, strict=True))


def _cell_graph(space: Space) -> PathGraph:
    """Return the graph of a NAS-Bench-201 cell, as the published construction of the angle reads it."""
    pools = cast(Mapping[Option, tuple[int, int]], nasbench201.pools(space))
    return PathGraph(nasbench201.EDGES, output=nasbench201.NODES - 1, none=nasbench201.NONE, pools=pools)


def _mean_ranks(values: Floats) -> Floats:
    """Return the rank of each value, from 0 for the smallest; equal values share their mean rank."""
    below = (values[:, None] > values[None]).sum(1)
    return np.asarray(below + 0.5 * ((values[:, None] == values[None]).sum(1) - 1))


@torch.no_grad()
def _uncalibrated_accuracy(study: Study, archs: Sequence[Arch]) -> Floats:
    """Return the search accuracy with moments pooled over random architectures, without recalibration.

    The running moments of the published supernets are such a mixture.
    """
    pooled = _pooled_moments(study)
    raw, labels = study.task.held("search")
    found = []
    for arch in archs:
        own = study.calibrate(arch)
        moments = MappingProxyType({name: pooled.get(name, value) for name, value in own.moments.items()})
        inputs = study.task.inputs(raw, study.supernet.space.example(arch))
        outputs = study.supernet(arch, *inputs, stats=Stats(moments, own.images))
        found.append(study.task.metric(outputs, labels))
    return np.array(found)


def _pooled_moments(study: Study) -> dict[str, torch.Tensor]:
    """Return the moments of every norm, pooled over ``_SHARED`` random architectures."""
    rng = Random("moments")
    space = study.supernet.space
    drawn = [study.calibrate(space.sample(rng)).moments for _ in range(_SHARED)]
    pooled: dict[str, torch.Tensor] = {}
    for name in {name for moments in drawn for name in moments}:
        if name.endswith(".running_mean"):
            other = name.removesuffix("mean") + "var"
            means = torch.stack([moments[name] for moments in drawn if name in moments])
            variances = torch.stack([moments[other] for moments in drawn if name in moments])
            pooled[name] = means.mean(0)
            pooled[other] = variances.mean(0) + means.var(0, correction=0)
    return pooled


def all_members(space: Space) -> list[Arch]:
    """Return every member of a space whose choices do not depend on each other, in the order of its options."""
    members: list[dict[str, Option]] = [{}]
    for name, choice in space.choices.items():
        members = [{**member, name: option} for member in members for option in choice.options]
    return [space.arch(member) for member in members]


def mean_by_operation(archs: Sequence[Arch], values: Sequence[float] | Floats) -> dict[tuple[str, Option], float]:
    """Return, for each (choice, option), the mean value of all architectures that contain it."""
    found: dict[tuple[str, Option], list[float]] = {}
    for arch, value in zip(archs, values, strict=True):
        for name, option in arch.items():
            found.setdefault((name, option), []).append(float(value))
    return {key: float(np.mean(listed)) for key, listed in found.items()}


def count_lost(
    space: Space, scores: Mapping[tuple[str, Option], float], best: Sequence[tuple[str, Option]], drop: int
) -> int:
    """Count how many of ``best`` are among the ``drop`` operations with the lowest scores; no slot is emptied."""
    left, _ = drop_worst(space, scores, ShrinkRules(drop, force=True))
    return sum(option not in left.choices[name].options for name, option in best)
