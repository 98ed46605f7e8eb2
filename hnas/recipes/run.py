"""An experiment: a recipe over a folder of data, from images to the supernet's folder."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from inspect import signature
from itertools import count
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from torch import nn

from hnas import distributed, hw_profiles, spaces, strategies, tasks
from hnas.cost import Cost, Price
from hnas.cost.flops import macs
from hnas.cost.roofline import roofline
from hnas.files import locked, read_json
from hnas.journal import Journal
from hnas.recipes import Recipe
from hnas.recipes.schema import LOSS, SCHEDULE, SHRINK, check, complaint, task_name, task_options
from hnas.sampling.draws import types
from hnas.shrinking import evidence
from hnas.space import Arch, Space
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.tasks import Task
from hnas.training.loop import Pick, Schedule, make, save

if TYPE_CHECKING:
    from hnas.shrinking.loop import Edit

JOURNAL = "training.jsonl"


def run(
    recipe: Recipe,
    data: Path,
    out: Path,
    *,
    seed: int = 0,
    epochs: float | None = None,
    alone: Arch | str | None = None,
    among: Space | None = None,
    resume: bool = False,
    advance: Callable[[int, int, float], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Train what ``recipe`` describes on the images in ``data`` and write the supernet's folder ``out``.

    alone: "smallest", "largest", "random:SEED" or an Arch: train that one subnet by itself with as many steps; its name
        is understood in ``among``, a part of the recipe's space (default: all of it).
    resume: go on from the checkpoint in ``out``; a run that has ended is not repeated, its record is returned.
    Returns the record that is also written: accuracies are top-1 on the test split, with calibrated norms.
    """
    check(recipe)
    if epochs is not None and (expected := complaint("epochs", epochs)):
        raise ValueError(f"epochs is {epochs}; expected {expected}")
    which = alone.to_json() if isinstance(alone, Arch) else alone
    wanted = {"recipe": recipe.to_json(), "epochs": epochs, "alone": which}
    if (ended := _ended(out, {**wanted, "seed": seed}, resume)) is not None:
        return ended
    task = task_of(recipe, data)
    space = _space(recipe, task)
    if alone:
        space = space.alone(named(among or space, alone))
    supernet = make(space, seed, f"recipe {recipe.name}")
    schedule = _schedule(recipe, task, epochs)
    with locked(out) if distributed.rank() == 0 else nullcontext():
        done = count(1)
        follow = (lambda _, loss: advance(min(next(done), schedule.steps), schedule.steps, loss)) if advance else None
        return _work(recipe, task, supernet, schedule, out, {**wanted, "seed": seed}, follow, say)


def _work(
    recipe: Recipe,
    task: Task,
    supernet: Supernet,
    schedule: Schedule,
    out: Path,
    wanted: dict[str, Any],
    advance: Callable[[int, float], None] | None,
    say: Callable[[str], None] | None,
) -> dict[str, Any]:
    """Train, evaluate and save; the record, which is empty where several processes train and this is not the first."""
    started, first = time.monotonic(), distributed.rank() == 0
    precision = recipe.train.get("precision", "fp32")
    with closing(Journal(out / JOURNAL if first else None)) as journal:
        study = Study(supernet, task, {}, journal, wanted["seed"], out, wanted, precision)
        log, logits = _train(study, recipe, schedule, wanted["alone"] is not None, advance, say)
    skipped = distributed.total(getattr(task, "skipped", 0))
    if not first:
        return {}
    ends = {"largest": supernet.space.largest, "smallest": supernet.space.smallest}
    record = {
        **wanted,
        "task": task.to_json(),
        "steps": schedule.steps,
        "seconds": round(time.monotonic() - started, 1),
        "accuracy": {name: round(study.accuracy(arch, "test"), 4) for name, arch in ends.items()},
        "images": {split: len(held) for split, held in task.splits.items()},
        **({"skipped": skipped} if recipe.data.get("skip") else {}),
        **({"edits": [edit.to_json() for edit in log]} if log else {}),
        **({"logits": logits} if logits else {}),
    }
    save(supernet, out, record)
    for trace in (*_checkpoints(out), out / JOURNAL):
        trace.unlink(missing_ok=True)
    return record


def _train(
    study: Study,
    recipe: Recipe,
    schedule: Schedule,
    alone: bool,
    advance: Callable[[int, float], None] | None,
    say: Callable[[str], None] | None,
) -> tuple[list[Edit], dict[str, dict[str, float]]]:
    """Train by the recipe; where it shrinks, the supernet's space is the last one afterwards.

    Returns the edits, and slot -> type -> logit where the strategy has architecture parameters.
    """
    strategy = strategies.load("alone" if alone else recipe.train["strategy"])
    space, options = study.supernet.space, {} if alone else dict(recipe.train.get("options", {}))
    extra: dict[str, nn.Parameter] = strategy.extra(space) if hasattr(strategy, "extra") else {}
    if isinstance(device := options.get("latency"), str):
        priced = Study(study.supernet, study.task, _costs(study.supernet, device))
        options["latency"] = strategy.latencies(priced, space)
    pick = partial(strategy.pick, **options, **({"extra": extra} if extra else {}))
    follow: dict[str, Any] = {"extra": extra, "advance": advance, "say": say}
    log: list[Edit] = []
    if alone or not recipe.shrink:
        study.train(pick, schedule, combine=recipe.train.get("combine", "sum"), **follow)
    else:
        cycles = [replace(schedule, cycles=(cycle,)) for cycle in schedule.cycles]
        space = _shrink(study, recipe, cycles, pick, {**follow, "log": log})
        for cycle in cycles[study.trained :]:  # shrinking may end before the schedule does
            study.train(pick, cycle, space=space, **follow)
        study.supernet.space = space
    known = {slot: dict(zip(types(space, slot), values.tolist(), strict=True)) for slot, values in extra.items()}
    return log, {slot: {kind: round(x, 6) for kind, x in own.items()} for slot, own in known.items()}


def _shrink(study: Study, recipe: Recipe, cycles: list[Schedule], pick: Pick, follow: Mapping[str, Any]) -> Space:
    """The space that the recipe's [shrink] leaves: by a published method, or by the loop and one evidence."""
    from hnas.shrinking import loop as shrinking

    space = study.supernet.space
    rules = {key: value for key, value in recipe.shrink.items() if key not in ("evidence", "method", "device")}
    if "method" not in recipe.shrink:
        kind, name = recipe.shrink["evidence"], json.dumps({"seed": study.seed, **recipe.shrink}, sort_keys=True)
        options = {key: rules.pop(key) for key in tuple(rules) if key not in SHRINK}
        scores = partial(evidence.load(kind).scores, **_given(kind, options, study.seed, follow["extra"]))
        return shrinking.run(study, space, scores, cycles, pick, name=name, **follow, **rules)
    method = strategies.load(recipe.shrink["method"]).shrink
    if "cost" in signature(method).parameters:
        from hnas.strategies.evolution import Window

        study.costs = _costs(study.supernet, recipe.shrink.get("device"))
        rules["cost"] = next(iter(study.costs))
        rules["windows"] = {name: Window(*bounds) for name, bounds in rules.get("windows", {}).items()}
    left: Space = method(study, space, cycles, pick, **follow, **rules)
    return left


def _given(kind: str, options: Mapping[str, Any], seed: int, extra: Mapping[str, nn.Parameter]) -> dict[str, Any]:
    """What an evidence is called with: a recipe's options, and unless they say so the run's seed; a strategy's logits.

    The same for each of its parts. ``extra`` itself is handed on, as it follows the space.
    """
    takes = signature(evidence.load(kind).scores).parameters
    offered = {"seed": seed, **({"logits": extra} if extra else {})}
    given = {key: value for key, value in offered.items() if key in takes} | dict(options)
    if "parts" in takes:
        parts = options.get("parts", takes["parts"].default)
        given["parts"] = {part: _given(part, own, seed, extra) for part, own in parts.items()}
    return given


def _costs(supernet: Supernet, device: str | None) -> dict[str, Cost]:
    """What a method that searches goes by: the latency predicted for a device, or else multiply-accumulates."""

    def counted(arch: Arch) -> Price:
        value = float(macs(supernet.skeleton(arch), *supernet.space.example(arch)))
        return Price(value, "MACs", value, value, "predicted")

    if device is None:
        return {"macs": counted}
    return {"latency_ms": roofline(supernet.space, supernet.skeleton, hw_profiles.load(device), "fp32")}


def task_of(recipe: Recipe, data: Path | None, **options: Any) -> Task:
    """Return the task that a recipe's [data] and [train] sections describe over the images in ``data``."""
    name = task_name(recipe.data)
    options |= {key: recipe.data[key] for key in task_options(name) if key in recipe.data}
    options |= {key: recipe.train[key] for key in LOSS if key in recipe.train}
    try:
        return tasks.load(name).open_task(data, batch_size=int(recipe.train.get("batch", 128)), **options)
    except TypeError as error:
        raise ValueError(f"recipe {recipe.name}: the task {name!r} does not take these options: {error}") from None


def named(space: Space, which: Arch | str) -> Arch:
    """An architecture by name: "smallest", "largest", "random:SEED"."""
    if isinstance(which, Arch):
        return space.arch(which)
    if which in ("smallest", "largest"):
        return space.smallest if which == "smallest" else space.largest
    if which.startswith("random:") and which[7:].isdigit():
        return space.sample(Random(int(which[7:])))
    raise ValueError(f"no architecture {which!r}; known: smallest, largest, random:SEED")


def _schedule(recipe: Recipe, task: Task, epochs: float | None) -> Schedule:
    """The recipe's cycles in steps; ``epochs`` in all, in place of the recipe's, shortens or lengthens each alike."""
    cycles = [(recipe.train["epochs"], recipe.train.get("rate", 0.1)), *recipe.train.get("restarts", [])]
    share = 1.0 if epochs is None else epochs / sum(length for length, _ in cycles)
    steps = [(max(1, round(length * share * task.steps_per_epoch)), float(rate)) for length, rate in cycles]
    return Schedule(tuple(steps), **{key: value for key, value in recipe.train.items() if key in SCHEDULE})


def _space(recipe: Recipe, task: Task) -> Space:
    arguments = {**task.space_arguments, **recipe.space}
    name = arguments.pop("name")
    make_space = spaces.load(name)
    try:
        return make_space(**arguments)
    except (TypeError, ArithmeticError) as error:
        raise ValueError(f"recipe {recipe.name}: the space {name!r} does not take these arguments: {error}") from None


def _ended(out: Path, wanted: dict[str, Any], resume: bool) -> dict[str, Any] | None:
    """The record of the run that ended in ``out``, None where there is one to begin or to go on with.

    ValueError names what of ``wanted`` the ended one was not; FileExistsError where ``resume`` was not asked for.
    """
    ended, begun = (out / "supernet.json").exists(), bool(_checkpoints(out))
    if ended and not resume:
        raise FileExistsError(f"{out} already holds a trained supernet; choose another --out or --resume")
    if begun and not resume:
        raise FileExistsError(f"{out} holds an interrupted training; continue it with --resume or choose another --out")
    if not ended or begun:
        return None
    record = read_json(out / "supernet.json")
    if differ := [key for key, value in wanted.items() if record.get(key) != value]:
        raise ValueError(f"{out} holds the supernet of a run with other {', '.join(differ)}; choose another --out")
    return record


def _checkpoints(out: Path) -> list[Path]:
    return sorted(out.glob("checkpoint-*.safetensors"))
