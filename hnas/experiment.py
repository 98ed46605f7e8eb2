"""An experiment: a recipe over a folder of data, from images to the supernet's folder."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from dataclasses import fields, replace
from functools import partial
from inspect import signature
from itertools import count
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from torch import nn

import hw_profiles
from hnas import distributed, evidence, spaces, strategies
from hnas.cost import Cost, Price
from hnas.cost.flops import macs
from hnas.cost.roofline import roofline
from hnas.distillation import DIVERGENCES
from hnas.evidence.angle import FORMS
from hnas.files import locked, read_json
from hnas.journal import Journal
from hnas.paths import types
from hnas.recipes import Recipe
from hnas.space import Arch, Space
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.tasks.classification import Classification, classification
from hnas.training import Pick, Schedule, make, save

if TYPE_CHECKING:
    from hnas.shrinking import Edit

# The keys of a recipe's sections, by who reads them.
IMAGES = ("size", "channels", "flip", "shift")
STREAM = ("size", "channels", "flip", "workers", "area", "randaugment", "skip")
READERS = {"memory": IMAGES, "folder": STREAM, "webdataset": STREAM}
LOSS = ("smoothing", "distil", "divergence")
SHRINK = ("evidence", "drop", "threshold", "keep", "spread", "force", "back", "until")
PASSED = ("study", "space", "stages", "pick", "extra", "log", "advance", "say", "cost", "graph")  # no keys of a recipe
JOURNAL = "training.jsonl"
SCHEDULE = tuple(f.name for f in fields(Schedule) if f.name != "cycles")
WHOLE = (
    *("size", "batch", "shift", "workers", "drop", "keep", "back", "until"),
    *("samples", "evaluations", "population", "ranks", "restart", "seed"),
)
CYCLES = ("epochs", "rate", "restarts")


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
    _check(recipe)
    if epochs is not None and (complaint := _complaint("epochs", epochs)):
        raise ValueError(f"epochs is {epochs}; expected {complaint}")
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
    task: Classification,
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
    from hnas import shrinking

    space = study.supernet.space
    rules = {key: value for key, value in recipe.shrink.items() if key not in ("evidence", "method", "device")}
    if "method" not in recipe.shrink:
        name, scores = json.dumps(recipe.shrink, sort_keys=True), evidence.load(recipe.shrink["evidence"]).scores
        return shrinking.run(study, space, scores, cycles, pick, name=name, **follow, **rules)
    method = strategies.load(recipe.shrink["method"]).shrink
    if "cost" in signature(method).parameters:
        from hnas.strategies.evolution import Window

        study.costs = _costs(study.supernet, recipe.shrink.get("device"))
        rules["cost"] = next(iter(study.costs))
        rules["windows"] = {name: Window(*bounds) for name, bounds in rules.get("windows", {}).items()}
    left: Space = method(study, space, cycles, pick, **follow, **rules)
    return left


def _costs(supernet: Supernet, device: str | None) -> dict[str, Cost]:
    """What a method that searches goes by: the latency predicted for a device, or else multiply-accumulates."""

    def counted(arch: Arch) -> Price:
        value = float(macs(supernet.skeleton(arch), *supernet.space.example(arch)))
        return Price(value, "MACs", value, value, "predicted")

    if device is None:
        return {"macs": counted}
    return {"latency_ms": roofline(supernet.space, supernet.skeleton, hw_profiles.load(device), "fp32")}


def task_of(recipe: Recipe, data: Path | None, **options: Any) -> Classification:
    """The task that a recipe's [data] and [train] sections describe over the images in ``data``."""
    reader = recipe.data.get("reader", "memory")
    taken = {key: recipe.data[key] for key in READERS[reader] if key in recipe.data}
    taken |= {key: recipe.train[key] for key in LOSS if key in recipe.train}
    options["batch_size"] = int(recipe.train.get("batch", 128))
    if reader == "memory":
        return classification(data, **taken, **options)
    from hnas.tasks.stream import stream

    return stream(data, reader, **taken, **options)


def named(space: Space, which: Arch | str) -> Arch:
    """An architecture by name: "smallest", "largest", "random:SEED"."""
    if isinstance(which, Arch):
        return space.arch(which)
    if which in ("smallest", "largest"):
        return space.smallest if which == "smallest" else space.largest
    if which.startswith("random:") and which[7:].isdigit():
        return space.sample(Random(int(which[7:])))
    raise ValueError(f"no architecture {which!r}; known: smallest, largest, random:SEED")


def _check(recipe: Recipe) -> None:
    """ValueError for a key that nobody reads, or one that is missing: a typing error must not train something else."""
    train = ("strategy", *CYCLES, "batch", *LOSS, *SCHEDULE, "options", "combine", "precision")
    if (reader := recipe.data.get("reader", "memory")) not in tuple(READERS):
        raise ValueError(f"recipe {recipe.name}: no reader {reader!r}; known: {', '.join(READERS)}")
    known = {"data": ("reader", *READERS[reader]), "train": train, "shrink": _shrink_keys(recipe)}
    for section, keys in known.items():
        for key in getattr(recipe, section):
            if key not in keys:
                raise ValueError(f"recipe {recipe.name}: [{section}] has no key {key!r}; known: {', '.join(keys)}")
            value = getattr(recipe, section)[key]
            if complaint := _complaint(key, value):
                raise ValueError(f"recipe {recipe.name}: {key} is {value!r}; expected {complaint}")
    for key in ("strategy", "epochs"):
        if key not in recipe.train:
            raise ValueError(f"recipe {recipe.name}: [train] lacks {key!r}")
    _check_strategy(recipe)


def _shrink_keys(recipe: Recipe) -> tuple[str, ...]:
    """The keys of [shrink]: those of the loop, or of a published method's ``shrink``; ValueError for no such method."""
    if (method := recipe.shrink.get("method")) is None:
        return SHRINK
    shrink = vars(strategies.load(method)).get("shrink") if method in strategies.names() else None
    if shrink is None:
        known = ", ".join(name for name in strategies.names() if hasattr(strategies.load(name), "shrink"))
        raise ValueError(f"recipe {recipe.name}: no method {method!r} to shrink by; known: {known}")
    takes = signature(shrink).parameters
    return ("method", *(["device"] if "cost" in takes else []), *(key for key in takes if key not in PASSED))


def _check_strategy(recipe: Recipe) -> None:
    """ValueError for a strategy that does not train, for options that it does not take, and for unknown evidence."""
    if recipe.shrink and "method" not in recipe.shrink:
        if not ("evidence" in recipe.shrink and {"drop", "threshold"} & set(recipe.shrink)):
            raise ValueError(f"recipe {recipe.name}: [shrink] needs evidence, and drop or threshold; or a method")
        required = signature(evidence.load(name := recipe.shrink["evidence"]).scores).parameters.values()
        if lacks := [each.name for each in required if each.kind is each.KEYWORD_ONLY and each.default is each.empty]:
            raise ValueError(f"recipe {recipe.name}: {name} needs a {lacks[0]}; give the method that has one, padnas")
    for device in (recipe.shrink.get("device"), recipe.train.get("options", {}).get("latency")):
        if isinstance(device, str):
            hw_profiles.load(device)
    pick = getattr(strategies.load(recipe.train["strategy"]), "pick", None)
    if pick is None:
        raise ValueError(f"recipe {recipe.name}: the strategy {recipe.train['strategy']!r} searches, it does not train")
    takes = list(signature(pick).parameters)[3:]
    if recipe.shrink and recipe.train.get("combine", "sum") != "sum":
        raise ValueError(f"recipe {recipe.name}: with [shrink] gradients add up; leave combine out of [train]")
    for key in recipe.train.get("options", {}):
        if key not in takes or key == "extra":
            raise ValueError(f"recipe {recipe.name}: {key!r} is no option of that strategy; known: {', '.join(takes)}")


def _complaint(key: str, value: Any) -> str | None:
    """What the value of a recipe's key must be, where it is something else."""
    if key == "options":
        return None if isinstance(value, dict) else "a table of the strategy's options"
    named = {"combine": ("sum", "project"), "precision": ("fp32", "bf16"), "divergence": DIVERGENCES, "form": FORMS}
    words = named.get(key)
    if words is not None:
        return None if value in words else " or ".join(f'"{word}"' for word in words)
    if key == "windows":
        pairs = isinstance(value, dict) and all(isinstance(pair, list) and len(pair) == 2 for pair in value.values())
        right = pairs and all(type(p) in (int, float) and not math.isnan(p) for pair in value.values() for p in pair)
        return None if right else "a table of costs, each [low, high]"
    if key in ("flip", "skip", "force", "reader", "strategy", "evidence", "method", "device", "balance"):
        kind, name = (bool, "true or false") if key in ("flip", "skip", "force") else (str, "a name in quotes")
        return None if isinstance(value, kind) else name
    if key == "randaugment":
        pair = isinstance(value, list) and len(value) == 2 and all(type(part) is int for part in value)
        return None if pair and 1 <= value[0] <= 15 and 1 <= value[1] < 30 else "[operations to 15, magnitude to 29]"
    if key == "restarts":
        pairs = isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value)
        right = pairs and not any(_complaint("epochs", part) for pair in value for part in pair)
        return None if right else "a list of [epochs, rate]"
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if key == "channels":
        return None if number and value in (1, 3) else "1 (grey) or 3 (RGB)"
    if key in WHOLE:
        least = 0 if key in ("shift", "workers", "back", "restart", "seed") else 1
        return None if number and isinstance(value, int) and value >= least else f"a whole number from {least} on"
    if key in (*LOSS, "area", "spread", "threshold"):
        return None if number and 0 <= value <= 1 else "a share between 0 and 1"
    return None if number and (value > 0 or (key != "epochs" and value == 0)) else "a finite number above 0"


def _schedule(recipe: Recipe, task: Classification, epochs: float | None) -> Schedule:
    """The recipe's cycles in steps; ``epochs`` in all, in place of the recipe's, shortens or lengthens each alike."""
    cycles = [(recipe.train["epochs"], recipe.train.get("rate", 0.1)), *recipe.train.get("restarts", [])]
    share = 1.0 if epochs is None else epochs / sum(length for length, _ in cycles)
    steps = [(max(1, round(length * share * task.steps_per_epoch)), float(rate)) for length, rate in cycles]
    return Schedule(tuple(steps), **{key: value for key, value in recipe.train.items() if key in SCHEDULE})


def _space(recipe: Recipe, task: Classification) -> Space:
    arguments = {"classes": len(task.classes), "channels": task.preprocessing.channels, **recipe.space}
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
