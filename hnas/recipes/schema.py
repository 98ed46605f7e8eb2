"""What a recipe may say: the keys of its sections, and of what type each value is.

A typing error must not train something else, so a key that nobody reads is refused. The options of strategies and of
evidence are read from the signatures of their functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from inspect import signature
from types import UnionType
from typing import Any, get_args, get_origin

from hnas import hw_profiles, strategies, tasks
from hnas.distillation import DIVERGENCES
from hnas.recipes import Recipe
from hnas.shrinking import evidence
from hnas.shrinking.evidence.angle import FORMS
from hnas.training.loop import Schedule

# The keys of a recipe's sections, by who reads them.
LOSS = ("smoothing", "distil", "divergence")
SHRINK = ("evidence", "drop", "threshold", "keep", "spread", "force", "back", "until")
_PASSED = (  # no keys of a recipe
    *("study", "space", "stages", "pick", "progress", "extra"),
    *("log", "advance", "say", "cost", "graph"),
)
SCHEDULE = tuple(f.name for f in fields(Schedule) if f.name != "cycles")
WHOLE = (
    *("size", "batch", "shift", "workers", "drop", "keep", "back", "until"),
    *("samples", "evaluations", "population", "ranks", "restart", "seed"),
)
_CYCLES = ("epochs", "rate", "restarts")
_WORDS = {int: "a whole number from 0 on", float: "a finite number", bool: "true or false", str: "a name in quotes"}


def check(recipe: Recipe) -> None:
    """ValueError for a key that nobody reads, or one that is missing: a typing error must not train something else."""
    train = ("strategy", *_CYCLES, "batch", *LOSS, *SCHEDULE, "options", "combine", "precision")
    _check_keys(recipe, "[data]", recipe.data, _data_keys(recipe))
    _check_keys(recipe, "[train]", recipe.train, dict.fromkeys(train))
    _check_keys(recipe, "[shrink]", recipe.shrink, _shrink_keys(recipe))
    for key in ("strategy", "epochs"):
        if key not in recipe.train:
            raise ValueError(f"recipe {recipe.name}: [train] lacks {key!r}")
    _check_strategy(recipe)


def task_name(data: Mapping[str, Any]) -> str:
    """Return the task of a [data] section: its ``task``, or else the task that its ``reader`` belongs to."""
    return str(data.get("task") or ("classification" if data.get("reader", "memory") == "memory" else "stream"))


def task_options(name: str) -> dict[str, Any]:
    """Return the keys of [data] that the task ``name`` takes, with their types."""
    found = signature(tasks.load(name).open_task, eval_str=True).parameters.values()
    passed = ("batch_size", "seed", *LOSS)
    return {each.name: each.annotation for each in found if each.kind is each.KEYWORD_ONLY and each.name not in passed}


def _data_keys(recipe: Recipe) -> dict[str, Any]:
    """Return the keys of [data] with their types. Raise ValueError for an unknown reader or task."""
    from hnas.tasks.stream import READERS

    reader = recipe.data.get("reader", "memory")
    keys = {**task_options(task_name(recipe.data)), "task": None}
    if "task" in recipe.data:
        return keys
    if reader not in (known := ("memory", *READERS)):
        raise ValueError(f"recipe {recipe.name}: no reader {reader!r}; known: {', '.join(known)}")
    return {"reader": None, **keys}


def _check_keys(recipe: Recipe, section: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """ValueError for a key that is not ``known`` (key -> type or None), or a value that is not what it must be."""
    names = ", ".join(known) or "none"
    for key, value in given.items():
        if key not in known:
            raise ValueError(f"recipe {recipe.name}: {section} has no key {key!r}; known: {names}")
        if wanted := complaint(key, value, known[key]):
            raise ValueError(f"recipe {recipe.name}: {key} is {value!r}; expected {wanted}")


def _shrink_keys(recipe: Recipe) -> dict[str, Any]:
    """The keys of [shrink]: the loop's and, typed, the evidence's, or those of a method; ValueError for no such one."""
    if (method := recipe.shrink.get("method")) is None:
        options = takes(evidence.load(recipe.shrink["evidence"]).scores) if "evidence" in recipe.shrink else {}
        return {**dict.fromkeys(SHRINK), **options}
    shrink = vars(strategies.load(method)).get("shrink") if method in strategies.names() else None
    if shrink is None:
        known = ", ".join(name for name in strategies.names() if hasattr(strategies.load(name), "shrink"))
        raise ValueError(f"recipe {recipe.name}: no method {method!r} to shrink by; known: {known}")
    parameters = signature(shrink).parameters
    keys = ("method", *(["device"] if "cost" in parameters else []), *(key for key in parameters if key not in _PASSED))
    return dict.fromkeys(keys)


def takes(function: Callable[..., Any]) -> dict[str, Any]:
    """The options of ``function`` that a TOML file can express, with their types."""
    found = signature(function, eval_str=True).parameters.values()
    options = {each.name: each.annotation for each in found if each.default is not each.empty}
    return {name: kind for name, kind in options.items() if name not in _PASSED and _in_words(kind)}


def _check_strategy(recipe: Recipe) -> None:
    """ValueError for a strategy that does not train, for options that it does not take, and for unknown evidence."""
    if recipe.shrink and "method" not in recipe.shrink:
        if not ("evidence" in recipe.shrink and {"drop", "threshold"} & set(recipe.shrink)):
            raise ValueError(f"recipe {recipe.name}: [shrink] needs evidence, and drop or threshold; or a method")
        _check_evidence(recipe, recipe.shrink["evidence"], recipe.shrink)
    for device in (recipe.shrink.get("device"), recipe.train.get("options", {}).get("latency")):
        if isinstance(device, str):
            hw_profiles.load(device)
    pick = getattr(strategies.load(recipe.train["strategy"]), "pick", None)
    if pick is None:
        raise ValueError(f"recipe {recipe.name}: the strategy {recipe.train['strategy']!r} searches, it does not train")
    if recipe.shrink and recipe.train.get("combine", "sum") != "sum":
        raise ValueError(f"recipe {recipe.name}: with [shrink] gradients add up; leave combine out of [train]")
    options = takes(pick)
    if "latency" in options:
        options["latency"] |= str  # a device, in place of the table that is made for it
    _check_keys(recipe, "[train.options]", recipe.train.get("options", {}), options)


def _check_evidence(recipe: Recipe, name: str, options: Mapping[str, Any]) -> None:
    """ValueError for evidence that needs what no recipe can give, and for options that its parts do not take."""
    required = signature(evidence.load(name).scores).parameters.values()
    if lacks := [each.name for each in required if each.kind is each.KEYWORD_ONLY and each.default is each.empty]:
        raise ValueError(f"recipe {recipe.name}: {name} needs a {lacks[0]}; give the method that has one, padnas")
    for part, own in options.get("parts", {}).items():
        _check_keys(recipe, f"[shrink.parts.{part}]", own, takes(evidence.load(part).scores))
        _check_evidence(recipe, part, own)


def complaint(key: str, value: Any, kind: Any = None) -> str | None:
    """What the value of a recipe's key must be, where it is something else; ``kind``: its type, of an option."""
    if key == "options":
        return None if isinstance(value, dict) else "a table of the strategy's options"
    named = {"combine": ("sum", "project"), "precision": ("fp32", "bf16"), "divergence": DIVERGENCES, "form": FORMS}
    named["split"] = ("search", "calibration")  # test images only report
    words = named.get(key)
    if words is not None:
        return None if value in words else " or ".join(f'"{word}"' for word in words)
    if key == "windows":
        pairs = isinstance(value, dict) and all(isinstance(pair, list) and len(pair) == 2 for pair in value.values())
        right = pairs and all(type(p) in (int, float) and not math.isnan(p) for pair in value.values() for p in pair)
        return None if right else "a table of costs, each [low, high]"
    if key in ("flip", "skip", "force", "reader", "task", "strategy", "evidence", "method", "device", "balance"):
        kind, name = (bool, "true or false") if key in ("flip", "skip", "force") else (str, "a name in quotes")
        return None if isinstance(value, kind) else name
    if key == "randaugment":
        pair = isinstance(value, list) and len(value) == 2 and all(type(part) is int for part in value)
        return None if pair and 1 <= value[0] <= 15 and 1 <= value[1] < 30 else "[operations to 15, magnitude to 29]"
    if key == "restarts":
        pairs = isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value)
        right = pairs and not any(complaint("epochs", part) for pair in value for part in pair)
        return None if right else "a list of [epochs, rate]"
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if key == "channels":
        return None if number and value in (1, 3) else "1 (grey) or 3 (RGB)"
    if key in WHOLE:
        least = 0 if key in ("shift", "workers", "back", "restart", "seed") else 1
        return None if number and isinstance(value, int) and value >= least else f"a whole number from {least} on"
    if kind is not None and key != "area":
        return None if fits(value, kind) else _in_words(kind)
    if key in (*LOSS, "area", "spread", "threshold"):
        return None if number and 0 <= value <= 1 else "a share between 0 and 1"
    return None if number and (value > 0 or (key != "epochs" and value == 0)) else "a finite number above 0"


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of that type, as TOML has types: true is no number, and a whole number is one, too."""
    parts = get_args(kind)
    if get_origin(kind) is UnionType:
        return any(fits(value, part) for part in parts)
    if get_origin(kind) is Mapping:
        return isinstance(value, dict) and all(fits(own, parts[1]) for own in value.values())
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return kind is Any or (type(value) is kind and (kind is not int or value >= 0))


def _in_words(kind: Any) -> str:
    """A type in words; empty where no TOML file can express it."""
    if get_origin(kind) is UnionType:
        return " or ".join(filter(None, map(_in_words, get_args(kind))))
    if get_origin(kind) is Mapping:
        inner = get_args(kind)[1]
        return "a table" if inner is Any else f"a table, each {_in_words(inner)}" if _in_words(inner) else ""
    return _WORDS.get(kind, "")
