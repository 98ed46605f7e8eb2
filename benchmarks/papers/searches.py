"""Run one differentiable search, or a search that it is compared with: ``searched(images, seed, SearchSetting(...))``.

The network that a search ends with is looked up in a table when a study is judged. A run sees the images alone.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from statistics import fmean, median
from typing import Any

import torch

from hnas import strategies
from hnas.benchmarks.papers import cells_table, digits_table, lone_table, tabular
from hnas.benchmarks.papers.data import StudyData
from hnas.benchmarks.papers.parts import Result
from hnas.benchmarks.papers.supernets import RATE, costs, count_passes, space_of, train_on_budget
from hnas.cost import Price
from hnas.sampling.derive import derive, skips_of
from hnas.sampling.draws import slot_types
from hnas.shrinking.loop import StageTraining
from hnas.space import Arch, Space
from hnas.strategies import evolution, pdarts
from hnas.strategies.evolution import EvolutionOptions
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.tasks.classification import keep_for_alpha
from hnas.training.checkpoint import AdamOptions
from hnas.training.loop import Pick, Schedule
from hnas.training.step import SubnetPath

# The spaces whose members were all trained alone: name of the table -> how it was made.
TABLES = {"cells": cells_table.TABLE, tabular.SPACE: digits_table.TABLE}
RANDOM, EVOLVED = "random", "spos"  # methods without logits
# Adam's learning rate for alpha, table -> method -> rate. From a pilot on cells, with seeds 100 and 101, 1,200 passes
# and rates of 0.01 and 0.05: the found cells were trained alone, and compared on the search images.
_PILOT = {"msgdas": 0.01, "gdas": 0.05, "darts": 0.05, "proxylessnas": 0.05, "pdarts": 0.01}
RATES: dict[str, dict[str, float]] = {name: dict(_PILOT) for name in TABLES}
_SCORING = 0.1  # of the passes, for the evolution after single paths
_IMAGES = 64  # of a pass


@dataclass(frozen=True, kw_only=True)
class SearchSetting:
    """The setting of one search.

    space, arguments: name and arguments of the space.
    strategy: its name; "spos": single paths, then evolution on the search images.
    budget: {"passes": n}.
    options: options of the strategy's ``pick``.
    rate: Adam's learning rate for the architecture parameters.
    alpha: share of the training images that trains them, for a strategy with such a split.
    """

    data: StudyData
    space: str
    arguments: Mapping[str, Any]
    strategy: str
    budget: Mapping[str, int]
    options: Mapping[str, Any] = field(default_factory=dict)
    rate: float = 0.003
    alpha: float = 0.5


@dataclass(frozen=True, kw_only=True)
class PaceSetting:
    """The setting of a part that measures the seconds of a pass, for each of ``searches``, and for training alone.

    table: the name of the table.
    rounds: short searches of each method, interleaved.
    """

    data: StudyData
    table: str
    searches: Mapping[str, SearchSetting]
    rounds: int


def searched(images: Path | None, seed: int, setting: SearchSetting) -> Result:
    """Search; return the derived architecture with its skips and types, the logits, steps, passes and CPU seconds."""
    return search_within(images, seed, setting, space_of(setting.space, setting.arguments))


def search_within(images: Path | None, seed: int, setting: SearchSetting, space: Space) -> Result:
    """Search a part ``space`` of the space of ``setting``; return what ``searched`` returns."""
    task = setting.data.task(images, seed)
    if getattr(strategies.load(setting.strategy), "SPLIT", None) == "alpha":
        task = replace(task, splits=keep_for_alpha(dict(task.splits), setting.alpha))
    whole = space_of(setting.space, setting.arguments)
    study = Study(Supernet(whole, seed), task, seed=seed, adam=AdamOptions(setting.rate))
    run = {"pdarts": _search_in_stages, EVOLVED: _evolve}.get(setting.strategy, _search_once)
    begun = time.process_time()
    arch, spent = run(study, space, setting)
    seconds = time.process_time() - begun
    skips = skips_of(space)
    return {
        **spent,
        "arch": arch.to_json(),
        "seconds": round(seconds, 3),
        "skips": sum(arch[f"{slot}.op"] in kinds for slot, kinds in skips.items()),
        "counts": dict(sorted(Counter(str(arch[f"{slot}.op"]) for slot in space.slots).items())),
    }


def _search_once(study: Study, space: Space, setting: SearchSetting) -> tuple[Arch, dict[str, Any]]:
    """Train by the strategy, and take the most likely type of every slot."""
    spent = train_on_budget(study, setting.strategy, setting.budget, space=space, options=setting.options)
    logits = {slot: torch.tensor(values) for slot, values in spent["logits"].items()}
    return derive(space, logits), spent


def _search_in_stages(study: Study, space: Space, setting: SearchSetting) -> tuple[Arch, dict[str, Any]]:
    """Run P-DARTS: three stages with a third of the passes each, at most two identities in the end.

    Slots that have no other type are allowed more.
    """
    extra, spent = pdarts.extra(space), [0.0]
    inner: Pick = partial(pdarts.pick, extra=extra, **setting.options)

    def counted(space: Space, rng: Random, progress: float) -> Sequence[SubnetPath]:
        paths = inner(space, rng, progress)
        spent[0] += sum(map(count_passes, paths))
        return paths

    schedules = [Schedule(((steps, RATE),)) for steps in _stage_steps(space, setting.budget["passes"])]
    left = pdarts.shrink(study, space, training=StageTraining(schedules, counted, extra))
    logits = {slot: [round(x, 6) for x in values.tolist()] for slot, values in extra.items()}
    steps = sum(schedule.steps for schedule in schedules)
    forced = sum(set(slot_types(left, slot)) <= set(kinds) for slot, kinds in skips_of(left).items())
    arch = derive(left, extra, max(pdarts.MAX_SKIPS, forced))
    return arch, {"steps": steps, "passes": round(spent[0], 2), "logits": logits}


def _stage_steps(space: Space, passes: int) -> list[int]:
    """Return the steps of P-DARTS' stages, as if no stage dropped a type with weights before the others."""
    kinds = {slot: slot_types(space, slot) for slot in space.slots}
    after_warmup = 2 - 0.4  # the warm-up of ``pdarts.pick`` trains no alpha
    found = []
    for share in (1.0, *pdarts.PDartsOptions().keep):
        mixtures = []
        for slot, own in kinds.items():
            most = count_passes(SubnetPath(Arch({f"{slot}.op": own})))
            mixtures.append(min(most, max(1.0, math.ceil(share * len(own)))))
        found.append(max(1, round(passes / 3 / (after_warmup * fmean(mixtures)))))
    return found


def _evolve(study: Study, space: Space, setting: SearchSetting) -> tuple[Arch, dict[str, Any]]:
    """Train single paths, then evolve on search accuracy and multiply-accumulates; take the most accurate member."""
    held = len(study.task.splits["calibration"]) + len(study.task.splits["search"])
    evaluation = held / _IMAGES / 3  # forward passes
    scored = max(2, round(_SCORING * setting.budget["passes"] / evaluation))
    training = max(1, round(setting.budget["passes"] - scored * evaluation))
    spent = train_on_budget(study, EVOLVED, {"passes": training}, space=space)

    def price(arch: Arch) -> Price:
        value = float(costs(space, arch)["macs"])
        return Price(value, "MACs", value, value, "predicted")

    scoring = Study(study.supernet, study.task, {"macs": price}, seed=study.seed)
    found = list(evolution.search(scoring, space, EvolutionOptions(cost="macs", evaluations=scored, seed=study.seed)))
    best = max(found, key=lambda each: each.metrics["accuracy"])
    return best.arch, {**spent, "passes": round(spent["passes"] + len(found) * evaluation, 2)}


def paces(images: Path | None, seed: int, setting: PaceSetting) -> Result:
    """Return method -> CPU seconds of a counted pass: the median of interleaved short searches.

    "random" is training alone. Its passes have 64 images too.
    """
    times: dict[str, list[float]] = {name: [] for name in (*setting.searches, RANDOM)}
    table = TABLES[setting.table]
    for turn in range(setting.rounds):
        for name, search in setting.searches.items():
            found = searched(images, seed + turn, search)
            times[name].append(found["seconds"] / found["passes"])
        begun = time.process_time()
        types = Random(f"pace/{turn}").choice(table.members())
        steps = max(1, round(next(iter(setting.searches.values())).budget["passes"] / passes_of_a_step(table.batch)))
        lone_table.train_alone(table, types, seed, steps)
        times[RANDOM].append((time.process_time() - begun) / (steps * passes_of_a_step(table.batch)))
    return {name: round(median(values), 6) for name, values in times.items()}


def passes_of_a_step(batch: int) -> float:
    """Return the passes of 64 images that a step with ``batch`` images counts as."""
    return batch / _IMAGES
