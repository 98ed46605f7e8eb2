"""Train a classifier that grows, or another for as much compute: ``grown_images(images, seed, GrownSetting(...))``.

Compute is the multiply-accumulates of the forward passes of all training, for one image.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from torch import nn

from hnas.benchmarks.papers.data import StudyData
from hnas.benchmarks.papers.parts import Result
from hnas.benchmarks.papers.supernets import costs, space_of
from hnas.cost.flops import macs
from hnas.growth.loop import GrowthRules, grow
from hnas.space import Arch, Space
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.training.loop import Observer, Pick, Schedule
from hnas.training.step import SubnetPath

SPACE = "hybrid_vision"
_STAGES, _FINISH = 5, 0.4


@dataclass(frozen=True, kw_only=True)
class GrownSetting:
    """The setting of a growth.

    before: steps of the small network alone; 0: it grows from random weights.
    steps: steps of the growth.
    rates: learning rates of the small network and of the growth.
    most: the largest number of weights.
    """

    data: StudyData
    arguments: Mapping[str, Any]
    before: int
    steps: int
    rates: tuple[float, float]
    most: int


@dataclass(frozen=True, kw_only=True)
class FixedSetting:
    """The setting of a training of one architecture, which ends when it has taken ``compute`` MACs an image."""

    data: StudyData
    arguments: Mapping[str, Any]
    arch: Mapping[str, Any]
    compute: float
    rate: float


@dataclass
class _CountingStudy(Study):
    """A study that counts the MACs of the forward passes that it trains, for one image. ``compute``: their sum."""

    compute: float = 0.0
    _known: dict[Arch, int] = field(default_factory=dict, repr=False)

    def train(
        self,
        pick: Pick,
        schedule: Schedule,
        *,
        space: Space | None = None,
        extra: Mapping[str, nn.Parameter] | None = None,
        combine: str = "sum",
        observer: Observer | None = None,
    ) -> None:
        """Train as ``Study.train``, and count."""

        def counted(space: Space, rng: Random, progress: float) -> Sequence[SubnetPath]:
            paths = pick(space, rng, progress)
            self.compute += sum(self.macs_of(path.arch) for path in paths)
            return paths

        super().train(counted, schedule, space=space, extra=extra, combine=combine, observer=observer)

    def macs_of(self, arch: Arch) -> int:
        """Return the MACs of a member, or of an open part with several types in a slot."""
        if arch not in self._known:
            self._known[arch] = macs(self.supernet.skeleton(arch), *self.supernet.space.example(arch))
        return self._known[arch]


def grown_images(images: Path | None, seed: int, setting: GrownSetting) -> Result:
    """Train the smallest network, then grow it. Return the member that is left, its accuracies and the compute."""
    space = space_of(SPACE, setting.arguments)
    study = _CountingStudy(Supernet(space, seed), setting.data.task(images, seed), seed=seed)
    begun, log, small = time.process_time(), list[dict[str, Any]](), space.arch(space.smallest)
    if setting.before:
        study.train(lambda *_: (SubnetPath(small),), Schedule(((setting.before, setting.rates[0]),)))
    before = study.compute
    rules = GrowthRules(stages=_STAGES, finish=_FINISH, max_weights=setting.most)
    schedule = Schedule(((setting.steps, setting.rates[1]),))
    arch = grow(study, rules, schedule, start=small, log=log).largest
    own = {"edits": [proof["edit"] for proof in log], "before": before}
    return own | _result(study, arch, setting.before + setting.steps, begun)


def fixed_images(images: Path | None, seed: int, setting: FixedSetting) -> Result:
    """Train one architecture from random weights. Return what ``grown_images`` returns."""
    space = space_of(SPACE, setting.arguments)
    arch = space.arch(setting.arch)
    study = _CountingStudy(Supernet(space, seed), setting.data.task(images, seed), seed=seed)
    begun, steps = time.process_time(), max(1, round(setting.compute / study.macs_of(arch)))
    study.train(lambda *_: (SubnetPath(arch),), Schedule(((steps, setting.rate),)))
    return _result(study, arch, steps, begun)


def _result(study: _CountingStudy, arch: Arch, steps: int, begun: float) -> Result:
    seconds = round(time.process_time() - begun, 2)
    accuracies = {split: study.accuracy(arch, split) for split in ("search", "test")}
    weights = costs(study.supernet.space, arch)["params"]
    spent = {"compute": study.compute, "steps": steps, "seconds": seconds}
    return {"arch": arch.to_json(), "weights": weights, **accuracies, **spent}
