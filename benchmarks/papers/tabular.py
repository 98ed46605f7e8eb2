"""Runs on ``tabular_digits``, where every architecture was trained alone: what ranks architectures or operations there.

The table is only read where a run is judged; a run itself sees the images of digits, as any search does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from hnas.benchmarks.papers import data
from hnas.benchmarks.papers.parts import Result
from hnas.benchmarks.papers.supernets import space_of, train
from hnas.shrinking import loop as shrinking
from hnas.shrinking.angles import Graph
from hnas.shrinking.evidence import angle
from hnas.space import Arch, Option, Space
from hnas.spaces import nasbench201
from hnas.study import Study
from hnas.supernet import Stats, Supernet

Floats = NDArray[np.float64]
SPACE = "tabular_digits"
_SHARED = 32  # random architectures whose moments are pooled where norms are not calibrated
METRICS = (
    "accuracy",
    "accuracy, not recalibrated",
    *(f"angle, {form}" for form in angle.FORMS),
    "rank sum: accuracy + angle",
    "rank sum: accuracy + standardised",
)


def ranking(
    images: Path | None,
    seed: int,
    *,
    of: Mapping[str, str],
    space: str,
    arguments: Mapping[str, Any],
    archs: Sequence[Mapping[str, Any]] | None,
    checkpoints: Sequence[int],
    strategy: str = "spos",
    graph: bool = False,
    quick: bool = False,
) -> Result:
    """Train a supernet and rank architectures at each of ``checkpoints`` (steps), by every metric.

    archs: which; None: every member of the space. graph: the space is NAS-Bench-201, whose slots are edges of a cell.
    Returned: step -> metric -> one value for each.
    """
    whole = space_of(space, arguments)
    members = [whole.arch(arch) for arch in archs] if archs is not None else enumerated(whole)
    study = Study(Supernet(whole, seed), data.named(of, images, seed, quick), seed=seed)
    found: dict[str, dict[str, list[float]]] = {}
    paths = cell(whole) if graph else None

    def advance(step: int, _: float) -> None:
        if step in checkpoints:
            found[str(step)] = {
                name: [round(float(x), 5) for x in row] for name, row in ranks(study, members, paths).items()
            }

    spent = train(study, strategy, {}, {"steps": max(checkpoints)}, advance=advance)
    return {**spent, "values": found}


def ranks(study: Study, archs: Sequence[Arch], graph: Graph | None = None) -> dict[str, Floats]:
    """Every metric of every architecture, on the search split; larger is better."""
    accuracy = np.array([study.accuracy(arch) for arch in archs])
    turned = {form: angle.of(study, archs, form=form, graph=graph) for form in angle.FORMS}
    values = [accuracy, unprepared(study, archs), *turned.values()]
    values += [places(accuracy) + places(turned["raw"]), places(accuracy) + places(turned["standardised"])]
    return dict(zip(METRICS, values, strict=True))


def cell(space: Space) -> Graph:
    """The graph of a NAS-Bench-201 cell, as the angle's published construction reads it."""
    pools = cast(Mapping[Option, tuple[int, int]], nasbench201.pools(space))
    return Graph(nasbench201.EDGES, output=nasbench201.NODES - 1, none=nasbench201.NONE, pools=pools)


def places(values: Floats) -> Floats:
    """The mean rank of each value among all, from 0 for the smallest; equal ones share it."""
    below = (values[:, None] > values[None]).sum(1)
    return np.asarray(below + 0.5 * ((values[:, None] == values[None]).sum(1) - 1))


@torch.no_grad()
def unprepared(study: Study, archs: Sequence[Arch]) -> Floats:
    """Search accuracy with norms that are not calibrated for the architecture: moments pooled over random ones.

    A supernet with running moments, as the published ones have, ends up with such a mixture.
    """
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
    raw, labels = study.task.held("search")
    found = []
    for arch in archs:
        own = study.calibrate(arch)
        stats = Stats(
            MappingProxyType({name: pooled.get(name, value) for name, value in own.moments.items()}), own.images
        )
        outputs = study.supernet(arch, *study.task.inputs(raw, space.example(arch)), stats=stats)
        found.append(study.task.metric(outputs, labels))
    return np.array(found)


def enumerated(space: Space) -> list[Arch]:
    """Every member of a space whose choices do not depend on each other, in the order of its options."""
    members: list[dict[str, Option]] = [{}]
    for name, choice in space.choices.items():
        members = [{**member, name: option} for member in members for option in choice.options]
    return [space.arch(member) for member in members]


def by_operation(archs: Sequence[Arch], values: Sequence[float] | Floats) -> dict[tuple[str, Option], float]:
    """The mean value of all architectures that contain an operation, for each (choice, option)."""
    found: dict[tuple[str, Option], list[float]] = {}
    for arch, value in zip(archs, values, strict=True):
        for name, option in arch.items():
            found.setdefault((name, option), []).append(float(value))
    return {key: float(np.mean(listed)) for key, listed in found.items()}


def lost(
    space: Space, scores: Mapping[tuple[str, Option], float], best: Sequence[tuple[str, Option]], drop: int
) -> int:
    """How many of ``best`` are among the ``drop`` operations with the lowest scores; no slot is emptied."""
    left, _ = shrinking.shrink(space, scores, drop, force=True)
    return sum(option not in left.choices[name].options for name, option in best)
