"""Train one network of the studies C2 and C4, grown or of fixed size: ``grown(folder, seed, GrowthSetting(...))``.

Every training is one call of ``hnas.growth.loop.grow``, at the settings of the shipped recipes. A space with one width
and one number of nodes has no edit, so that a network of fixed size is trained by the same code.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, Literal

from hnas import spaces
from hnas.benchmarks.papers.parts import Result
from hnas.benchmarks.papers.sequences import SequenceData, open_sequence
from hnas.cost.flops import parameters
from hnas.growth.edits import apply
from hnas.growth.loop import KINDS, GrowthRules, grow, possible_edits, settle
from hnas.growth.network import GrowingNetwork
from hnas.space import Arch
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.training.loop import Schedule
from hnas.training.step import SubnetPath

_FINISH = 0.4  # as in the recipes
_PROBE = 32  # examples of the proof of an edit


@dataclass(frozen=True, kw_only=True)
class GrowthSetting:
    """The setting of one training.

    growth: how the network grows. "prune_last" and "alternate": the modes of ``GrowthRules``. "random": as many edits
        as "prune_last" makes, at random steps, each of a random kind at a random place. A space of one size has no
        edit.
    widths, nodes: the sizes of the space; growth begins at the first ones.
    steps: of the whole training.
    rate: peak learning rate of Adam in each cycle.
    stages: cycles before the last one; an edit follows each.
    """

    data: SequenceData
    growth: Literal["prune_last", "alternate", "random"]
    widths: Sequence[int]
    nodes: Sequence[int]
    steps: int
    rate: float
    stages: int


@dataclass(frozen=True, kw_only=True)
class GrowthPaceSetting:
    """The setting of a part that measures the CPU seconds of a step.

    data: that of the trainings.
    trainings: name -> a training; all are of one length.
    rounds: trainings of each name, interleaved.
    """

    data: SequenceData
    trainings: Mapping[str, GrowthSetting]
    rounds: int


def grown(folder: Path | None, seed: int, setting: GrowthSetting) -> Result:
    """Train; return the metric on both splits, the weights, the CPU seconds of the training, and the edits."""
    task = open_sequence(setting.data, seed, folder=folder)
    space = spaces.load("recurrent_cell")(
        **task.space_arguments, widths=list(setting.widths), nodes=list(setting.nodes)
    )
    study = Study(Supernet(space, seed), task, seed=seed)
    rules = GrowthRules(
        mode="alternate" if setting.growth == "alternate" else "prune_last", stages=setting.stages, finish=_FINISH
    )
    schedule = Schedule(((setting.steps, setting.rate),), decay=0.0, clip=1.0, optimiser="adam")
    log: list[dict[str, Any]] = []
    begun = time.process_time()
    if setting.growth == "random":
        member = _grow_at_random(study, rules, schedule, log)
    else:
        member = space.arch(grow(study, rules, schedule, log=log).smallest)
    seconds = time.process_time() - begun
    return {
        "search": study.accuracy(member),
        "test": study.accuracy(member, "test"),
        "weights": parameters(study.supernet.skeleton(member)),
        "seconds": round(seconds, 3),
        "arch": member.to_json(),
        "edits": [each["edit"]["edit"] for each in log],
    }


def growth_paces(folder: Path | None, seed: int, setting: GrowthPaceSetting) -> Result:
    """Return name -> CPU seconds of a step: the median of interleaved trainings."""
    times: dict[str, list[float]] = {name: [] for name in setting.trainings}
    for turn in range(setting.rounds):
        for name, each in setting.trainings.items():
            times[name].append(float(grown(folder, seed + turn, each)["seconds"]) / each.steps)
    return {name: round(median(values), 6) for name, values in times.items()}


def _grow_at_random(study: Study, rules: GrowthRules, schedule: Schedule, log: list[dict[str, Any]]) -> Arch:
    """Train and grow without the rules of ``grow``: random steps, kinds and places; return the member that is left.

    Each edit is still proved. As in ``grow``, a stage is a cosine cycle, and the member is trained alone at the end.
    """
    net, rng = GrowingNetwork.begin(study.supernet), Random(f"{study.seed}/random growth")
    probe = study.task.inputs(study.task.held("calibration")[0][:_PROBE], net.space.example(net.arch))
    growing = schedule.steps - max(1, round(rules.finish * schedule.steps))
    rate = schedule.cycles[0][1]
    cuts = [0, *sorted(rng.sample(range(1, growing), rules.stages - 1)), growing]
    for stage in range(rules.stages):
        cycle = _cycle(schedule, cuts[stage + 1] - cuts[stage], rate)
        study.train(lambda *_: (SubnetPath(net.arch, net.gates() or None),), cycle, extra=net.mixing)
        offered = [found for kind in KINDS if (found := list(possible_edits(net, kind)))]
        if offered and (proof := apply(net, rng.choice(rng.choice(offered)), probe)) is not None:
            log.append({"stage": stage, **proof.to_json()})
    member = settle(net)
    study.train(lambda *_: (SubnetPath(member),), _cycle(schedule, schedule.steps - growing, rate))
    return member


def _cycle(schedule: Schedule, steps: int, rate: float) -> Schedule:
    """Return one cosine cycle."""
    return replace(schedule, cycles=((steps, rate),))
