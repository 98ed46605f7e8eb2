"""Run the two trainings that most studies are made of: a supernet under a strategy, and one architecture alone.

A budget is counted in two units. Steps are updates of the weights. Path passes are forward and backward passes of one
subnet on one batch. A pass with several types active counts as that many passes; a pass that only chooses (a rival),
and a forward pass that does not train, count as a third.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from hnas import spaces, strategies
from hnas.benchmarks.papers.data import StudyData
from hnas.benchmarks.papers.parts import Result
from hnas.cost.flops import macs, parameters
from hnas.shrinking.evidence import angle
from hnas.space import Arch, Space
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.training.loop import Observer, Pick, Schedule
from hnas.training.step import SubnetPath

RATE = 0.1  # learning rate of every strategy; tuned for none of them
EVALUATION = 20.0  # recalibration and scoring of one subnet take about as long as this number of path passes
FREE = "identity"  # a type without weights, which does not count as an active branch
_FREE = {FREE, "skip", "skip_connect", "none"}  # all such types


@dataclass(frozen=True, kw_only=True)
class SupernetSetting:
    """The setting of a supernet part.

    space, arguments: name and arguments of the space.
    strategy: name of the strategy that samples the steps.
    budget: {"steps": n} or {"passes": n}.
    archs: the architectures to score, as JSON.
    learn: whether architecture parameters, where the strategy has any, are trained.
    times: how many steps of the strategy make one step, on the same images.
    angles: whether the architectures are scored by their angles too.
    """

    data: StudyData
    space: str
    arguments: Mapping[str, Any]
    strategy: str
    budget: Mapping[str, int]
    archs: Sequence[Mapping[str, Any]]
    learn: bool = True
    times: int = 1
    angles: bool = True


@dataclass(frozen=True, kw_only=True)
class AloneSetting:
    """The setting of a part that trains one architecture alone, for ``steps`` steps."""

    data: StudyData
    space: str
    arguments: Mapping[str, Any]
    arch: Mapping[str, Any]
    steps: int


def small_hybrid(
    images: Path | None, types: Sequence[str] = ("identity", "convnext", "mbconv", "fusedconv")
) -> dict[str, Any]:
    """Return the arguments of the hybrid space: five slots of 16 and 24 channels, sizes as in a once-for-all net."""
    return {
        "classes": 10,
        "channels": 1,
        "resolutions": [8 if images is None else 14],
        "stem": 8,
        "widths": [[16], [24]],
        "depths": [[2], [3]],
        "strides": [2, 1],
        "head": 48,
        "types": list(types),
        "kernels": [3, 5],
        "expansions": [2, 4],
        "fused_expansions": [1, 2],
    }


@lru_cache(16)
def _space(name: str, arguments: str) -> Space:
    return spaces.load(name)(**json.loads(arguments))


def space_of(name: str, arguments: Mapping[str, Any]) -> Space:
    """Return the space of a setting; the same object each time."""
    return _space(name, json.dumps(arguments, sort_keys=True))


def common_members(name: str, arguments: Mapping[str, Any], n: int, drawn: int = 256) -> list[Arch]:
    """Return ``n`` members spread evenly over the multiply-accumulates of ``drawn`` random members; always the same."""
    return _common_members(name, json.dumps(arguments, sort_keys=True), n, drawn)


@lru_cache(16)
def _common_members(name: str, arguments: str, n: int, drawn: int) -> list[Arch]:
    space, rng = _space(name, arguments), Random("common")
    members = list(dict.fromkeys(space.sample(rng) for _ in range(drawn)))
    members.sort(key=lambda arch: (costs(space, arch)["macs"], arch.digest))
    places = np.linspace(0, len(members) - 1, min(n, len(members))).round().astype(int)
    return [members[i] for i in places]


def costs(space: Space, arch: Arch) -> dict[str, int]:
    """Return the multiply-accumulates and parameters of a member."""
    with torch.device("meta"):
        net = space.build(arch)
    return {"macs": macs(net, *space.example(arch)), "params": parameters(net)}


def supernet(images: Path | None, seed: int, setting: SupernetSetting) -> Result:
    """Train a supernet, then score architectures with inherited weights, recalibrated norms, and by their angles."""
    whole = space_of(setting.space, setting.arguments)
    study = Study(Supernet(whole, seed), setting.data.task(images, seed), seed=seed)
    spent = train_on_budget(study, setting.strategy, setting.budget, learn=setting.learn, times=setting.times)
    members = [whole.arch(arch) for arch in setting.archs]
    turned = {}
    if setting.angles:
        turned = {form: angle.angles_of(study, members, form=form).round(6).tolist() for form in angle.FORMS}
    return {**spent, **_score_splits(study, members), "angles": turned}


def alone(images: Path | None, seed: int, setting: AloneSetting) -> Result:
    """Train one architecture from its own initial weights, on the images of a supernet in the same order."""
    whole = space_of(setting.space, setting.arguments)
    lone = whole.alone(whole.arch(setting.arch))
    study = Study(Supernet(lone, seed), setting.data.task(images, seed), seed=seed)
    spent = train_on_budget(study, "alone", {"steps": setting.steps})
    return {**spent, **{split: values[0] for split, values in _score_splits(study, [lone.largest]).items()}}


def _score_splits(study: Study, archs: Sequence[Arch]) -> dict[str, list[float]]:
    """Return the accuracies on the search and the test split, from one recalibration of each architecture."""
    splits = ("search", "test")
    table = [[study.accuracy(arch, split) for split in splits] for arch in archs]
    return {split: [row[i] for row in table] for i, split in enumerate(splits)}


def train_on_budget(
    study: Study,
    strategy: str,
    budget: Mapping[str, int],
    *,
    space: Space | None = None,
    learn: bool = True,
    times: int = 1,
    options: Mapping[str, Any] | None = None,
    advance: Callable[[int, float], None] | None = None,
) -> dict[str, Any]:
    """Train by a strategy until ``budget`` is spent; return the steps, the passes and the final logits.

    budget: {"steps": n} or {"passes": n}.
    space: the members to train; None is the space of the supernet.
    learn: whether architecture parameters, where the strategy has any, are trained.
    times: how many steps of the strategy make one step, on the same images.
    options: options of the strategy's ``pick``.
    """
    module: Any = strategies.load(strategy)
    space = space or study.supernet.space
    extra = module.extra(space) if learn and hasattr(module, "extra") else None
    given = dict(options or {}) if extra is None else {"extra": extra, **(options or {})}
    one: Pick = partial(module.pick, **given)

    def pick(space: Space, rng: Random, progress: float) -> Sequence[SubnetPath]:
        return [path for _ in range(times) for path in one(space, rng, progress)]

    steps = budget.get("steps") or max(1, round(budget["passes"] / _passes_of_step(space, pick)))
    spent = [0.0]

    def counted(space: Space, rng: Random, progress: float) -> Sequence[SubnetPath]:
        paths = pick(space, rng, progress)
        spent[0] += sum(map(count_passes, paths))
        return paths

    schedule = Schedule(((steps, RATE),))
    study.train(counted, schedule, space=space, extra=extra, observer=Observer(advance))
    logits = {slot: [round(x, 6) for x in values.tolist()] for slot, values in (extra or {}).items()}
    return {"steps": steps, "passes": round(spent[0], 2), "logits": logits}


def _passes_of_step(space: Space, pick: Pick, probes: int = 32) -> float:
    """Return the path passes of a mean step, over the whole schedule."""
    drawn = [pick(space, Random(f"probe/{i}"), i / probes) for i in range(probes)]
    return sum(count_passes(path) for paths in drawn for path in paths) / probes


def count_passes(path: SubnetPath) -> float:
    """Return the cost of a path in single-path passes: the mean number of active branches in a slot, plus rivals.

    A path without gradients costs a third of that.
    """
    active = [_active(option) for name, option in path.arch.items() if name.endswith(".op")]
    mean = sum(active) / len(active) if active else 1.0
    return (mean if path.trains else mean / 3) + len(path.rivals) / 3


def _active(option: Any) -> int:
    """Return the active branches of a slot: 1 for a single type; of several types, the number with weights."""
    return max(1, sum(kind not in _FREE for kind in option)) if isinstance(option, tuple) else 1
