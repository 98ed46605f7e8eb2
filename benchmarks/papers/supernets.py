"""The two runs that most studies are made of: a supernet under a strategy, and one architecture trained alone.

A budget is counted on two axes. Steps: updates of the weights. Path passes: a forward and backward pass of one subnet
on one batch; a pass with several types active counts as that many, and one that only chooses (a rival) as a third.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path as Folder
from random import Random
from typing import Any

import numpy as np
import torch

from hnas import spaces, strategies
from hnas.benchmarks.papers import data
from hnas.benchmarks.papers.parts import Result
from hnas.cost.flops import macs, parameters
from hnas.shrinking.evidence import angle
from hnas.space import Arch, Space
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.training.loop import Pick, Schedule
from hnas.training.step import Path

RATE = 0.1  # of every strategy; tuned for none of them
EVALUATION = 20.0  # path passes that the calibration and scoring of one subnet takes, about
FREE = "identity"  # a type without weights: it is no active branch


def small_hybrid(
    images: Folder | None, types: Sequence[str] = ("identity", "convnext", "mbconv", "fusedconv")
) -> dict[str, Any]:
    """The arguments of the studies' hybrid space: five slots of 16 and 24 channels, sizes as in a once-for-all net."""
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
    """The space that a setting names; the same object each time."""
    return _space(name, json.dumps(arguments, sort_keys=True))


def common(name: str, arguments: Mapping[str, Any], n: int, drawn: int = 256) -> list[Arch]:
    """``n`` members spread evenly over the multiply-accumulates of ``drawn`` random ones, the same for all."""
    return _common(name, json.dumps(arguments, sort_keys=True), n, drawn)


@lru_cache(16)
def _common(name: str, arguments: str, n: int, drawn: int) -> list[Arch]:
    space, rng = _space(name, arguments), Random("common")
    members = list(dict.fromkeys(space.sample(rng) for _ in range(drawn)))
    members.sort(key=lambda arch: (costs(space, arch)["macs"], arch.digest))
    places = np.linspace(0, len(members) - 1, min(n, len(members))).round().astype(int)
    return [members[i] for i in places]


def costs(space: Space, arch: Arch) -> dict[str, int]:
    """Multiply-accumulates and parameters of a member."""
    with torch.device("meta"):
        net = space.build(arch)
    return {"macs": macs(net, *space.example(arch)), "params": parameters(net)}


def supernet(
    images: Folder | None,
    seed: int,
    *,
    of: Mapping[str, str],
    space: str,
    arguments: Mapping[str, Any],
    strategy: str,
    options: Mapping[str, Any],
    budget: Mapping[str, int],
    archs: Sequence[Mapping[str, Any]],
    learn: bool = True,
    times: int = 1,
    angles: bool = True,
    quick: bool = False,
) -> Result:
    """Train a supernet and score ``archs`` with inherited weights and calibrated norms, and by their angles."""
    whole = space_of(space, arguments)
    study = Study(Supernet(whole, seed), data.named(of, images, seed, quick), seed=seed)
    spent = train(study, strategy, options, budget, learn=learn, times=times)
    members = [whole.arch(arch) for arch in archs]
    turned = {form: angle.of(study, members, form=form).round(6).tolist() for form in angle.FORMS} if angles else {}
    return {**spent, **scores(study, members), "angles": turned}


def alone(
    images: Folder | None,
    seed: int,
    *,
    of: Mapping[str, str],
    space: str,
    arguments: Mapping[str, Any],
    arch: Mapping[str, Any],
    steps: int,
    quick: bool = False,
) -> Result:
    """Train one architecture from its own initial weights; the same images in the same order as a supernet's."""
    whole = space_of(space, arguments)
    lone = whole.alone(whole.arch(arch))
    study = Study(Supernet(lone, seed), data.named(of, images, seed, quick), seed=seed)
    spent = train(study, "alone", {}, {"steps": steps})
    return {**spent, **{split: values[0] for split, values in scores(study, [lone.largest]).items()}}


def scores(study: Study, archs: Sequence[Arch]) -> dict[str, list[float]]:
    """Accuracy of each on the search and the test split, from one calibration."""
    splits = ("search", "test")
    table = [[study.accuracy(arch, split) for split in splits] for arch in archs]
    return {split: [row[i] for row in table] for i, split in enumerate(splits)}


def train(
    study: Study,
    strategy: str,
    options: Mapping[str, Any],
    budget: Mapping[str, int],
    *,
    space: Space | None = None,
    learn: bool = True,
    times: int = 1,
    advance: Callable[[int, float], None] | None = None,
) -> dict[str, Any]:
    """Train by a strategy until ``budget`` ({"steps": n} or {"passes": n}) is spent; the steps and passes it took.

    learn: whether its architecture parameters, where it has any, are trained or left out. times: so many of its steps
    make one, on the same images.
    """
    module: Any = strategies.load(strategy)
    space = space or study.supernet.space
    extra = module.extra(space) if learn and hasattr(module, "extra") else None
    one: Pick = partial(module.pick, **options, **({} if extra is None else {"extra": extra}))

    def pick(space: Space, rng: Random, progress: float) -> Sequence[Path]:
        return [path for _ in range(times) for path in one(space, rng, progress)]

    steps = budget.get("steps") or max(1, round(budget["passes"] / each_step(space, pick)))
    spent = [0.0]

    def counted(space: Space, rng: Random, progress: float) -> Sequence[Path]:
        paths = pick(space, rng, progress)
        spent[0] += sum(map(passes, paths))
        return paths

    schedule = Schedule(((steps, RATE),))
    study.train(counted, schedule, space=space, extra=extra, advance=advance)
    logits = {slot: [round(x, 6) for x in values.tolist()] for slot, values in (extra or {}).items()}
    return {"steps": steps, "passes": round(spent[0], 2), "logits": logits}


def each_step(space: Space, pick: Pick, probes: int = 32) -> float:
    """The path passes of a mean step, over the whole of the schedule."""
    drawn = [pick(space, Random(f"probe/{i}"), i / probes) for i in range(probes)]
    return sum(passes(path) for paths in drawn for path in paths) / probes


def passes(path: Path) -> float:
    """How many passes of a single path this one is worth: the active branches of a mean slot."""
    active = [_active(option) for name, option in path.arch.items() if name.endswith(".op")]
    return (sum(active) / len(active) if active else 1.0) + len(path.rivals) / 3


def _active(option: Any) -> int:
    """A slot of one type is one pass, whatever the type; of several, those with weights count."""
    return max(1, sum(kind != FREE for kind in option)) if isinstance(option, tuple) else 1
