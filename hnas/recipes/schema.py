"""Decode a recipe into records with msgspec: ``decode_recipe(recipe)``. A mistyped key is an error, never ignored.

The records are those of ``hnas.recipes.sections`` and the options of the published methods. The options of tasks,
training strategies and evidence are the annotated keyword parameters of their functions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from inspect import signature
from types import ModuleType
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec
from msgspec import UNSET, Struct, defstruct

from hnas import hw_profiles, strategies, tasks
from hnas.cost.counts import COUNTED
from hnas.growth.loop import GrowthRules
from hnas.recipes import Recipe
from hnas.recipes.sections import CostName, DataSection, Experiment, ShrinkByEvidence, ShrinkByMethod, TrainSection
from hnas.recipes.wording import describe, is_toml
from hnas.sampling.expected import window_of
from hnas.shrinking import evidence
from hnas.shrinking.edits import ShrinkRules
from hnas.tasks.stream import READERS

_Types = Mapping[str, Any]  # key -> type of its value
_Record = TypeVar("_Record", bound=Struct)
# Growth trains one path a step and has cycles of its own, so with [grow] these keys of [train] have no other value.
GROWN: Mapping[str, Any] = {"strategy": "spos", "options": {}, "combine": "sum", "restarts": ()}
_ELSEWHERE = ("batch_size", "smoothing", "distil", "divergence")  # options of tasks that [data] does not give


def decode_recipe(recipe: Recipe) -> Experiment:
    """Return the records of a recipe.

    Raises:
        ValueError: a key is unknown or missing, a value is not allowed, or the task, strategy, evidence or device does
            not exist. The message is one line with the key and the allowed values.
    """
    data = _decode_data(recipe)
    train = _decode(recipe, "train", recipe.train, TrainSection)
    shrink = _decode_shrink(recipe) if recipe.shrink else None
    if shrink and train.combine != "sum":
        raise ValueError(f"recipe {recipe.name}: with [shrink] gradients add up; leave combine out of [train]")
    grow = _decode_grow(recipe, train) if recipe.grow else None
    options = _decode_strategy(recipe, train)
    _check_stages(recipe, train, shrink)
    if shrink:
        _check_exclusive(recipe, train, options, shrink)
    return Experiment(data, train, options, shrink, grow)


def options_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the parameters of ``pick``, ``scores`` or ``open_task`` that a TOML file can express: name -> type."""
    hints = get_type_hints(function, include_extras=True)
    optional = [p.name for p in signature(function).parameters.values() if p.default is not p.empty]
    return {name: hints[name] for name in optional if name != "progress" and is_toml(hints[name])}


def _decode_data(recipe: Recipe) -> DataSection:
    """Return the task that ``task`` names, or else that of the ``reader``, and its options."""
    readers = ("memory", *READERS)
    reader = recipe.data.get("reader", "memory")
    if "task" in recipe.data:
        name, chosen = recipe.data["task"], {}
    elif reader in readers:
        name, chosen = ("classification" if reader == "memory" else "stream"), {"reader": str}
    else:
        raise ValueError(f"recipe {recipe.name}: no reader {reader!r}; known: {', '.join(readers)}")
    options = {key: kind for key, kind in options_of(tasks.load(name).open_task).items() if key not in _ELSEWHERE}
    given = _decode_given(recipe, "data", recipe.data, {**chosen, **options, "task": str})
    return DataSection(name, {key: given[key] for key in options if key in given})


def _decode_grow(recipe: Recipe, train: TrainSection) -> GrowthRules:
    """Return the rules of growth. Raise ValueError for keys of other sections that have no effect on it."""
    if recipe.shrink:
        raise ValueError(f"recipe {recipe.name}: a network grows or a space shrinks; give [grow] or [shrink]")
    for key, value in GROWN.items():
        if getattr(train, key) != value:
            mend = f'give train.{key} = "{value}"' if value else f"leave train.{key} out"
            raise ValueError(f"recipe {recipe.name}: with [grow] each step trains the open part alone; {mend}")
    given = _decode_given(recipe, "grow", recipe.grow, _fields_of(GrowthRules))
    if (device := given.get("device")) is not None:
        hw_profiles.load(device)
    try:
        return GrowthRules(**given)
    except ValueError as error:
        raise ValueError(f"recipe {recipe.name}: {error}") from None


def _decode_strategy(recipe: Recipe, train: TrainSection) -> Mapping[str, Any]:
    """Return the options of the training strategy that the recipe gives."""
    strategy = strategies.load(train.strategy)
    if not hasattr(strategy, "pick"):
        raise ValueError(f"recipe {recipe.name}: the strategy {train.strategy!r} searches, it does not train")
    if train.max_skips is not UNSET and not hasattr(strategy, "extra"):
        raise ValueError(f"recipe {recipe.name}: {train.strategy!r} derives no network; leave train.max_skips out")
    known = options_of(strategy.pick)
    if hasattr(strategy, "latencies"):  # a device or a counted cost may be named in place of the table
        known |= {"latency": str, "cost": CostName, "measured": bool}
    options = _decode_given(recipe, "train.options", train.options, known)
    if reason := _contradiction(options):
        raise ValueError(f"recipe {recipe.name}: {reason}")
    return options


def _contradiction(options: Mapping[str, Any]) -> str:
    """Return why the cost that the options name cannot be in the loss; empty if it can."""
    cost, device = options.get("cost"), options.get("latency")
    local = isinstance(device, str) and hw_profiles.load(device).local
    if cost in COUNTED and device is not None:
        return f'train.options.cost is "{cost}", and train.options.latency names a device; give one of them'
    if cost == "latency" and device is None:
        return 'the cost "latency" needs a device: train.options.latency = "openvino-cpu"'
    if options.get("measured") and not local:
        return 'train.options.measured needs a device of this machine: train.options.latency = "openvino-cpu"'
    if (limit := options.get("limit")) is None:
        return ""
    if cost is None and device is None:
        return "train.options.limit limits no cost; give train.options.cost or train.options.latency"
    try:
        window_of(limit)
    except ValueError as error:
        return f"train.options.limit: {error}"
    return ""


def _check_stages(recipe: Recipe, train: TrainSection, shrink: ShrinkByEvidence | ShrinkByMethod | None) -> None:
    """Raise ValueError for a strategy of stages without [shrink], and for fewer cycles than [shrink] has stages."""
    name, cycles = train.strategy, 1 + len(train.restarts)
    in_stages = getattr(strategies.load(name), "IN_STAGES", False)
    if shrink is None and in_stages:
        mend = f'give [shrink] method = "{name}", and a cycle for each further stage: train.restarts = [[25, 0.1], ...]'
        raise ValueError(f"recipe {recipe.name}: the strategy {name!r} drops types in stages; {mend}")
    if shrink is None:
        return
    needed = max(getattr(shrink.options, "stages", 2), 2)  # the space becomes smaller between two cycles
    if cycles < needed:
        what = f"[shrink] needs {needed} cycles, one for each stage, and [train] has {cycles}"
        raise ValueError(f"recipe {recipe.name}: {what}; give train.restarts {needed - 1} cycles of [epochs, rate]")


def _check_exclusive(
    recipe: Recipe, train: TrainSection, options: Mapping[str, Any], shrink: ShrinkByEvidence | ShrinkByMethod
) -> None:
    """Raise ValueError if shrinking may leave a slot two types or more, and fewer than a step draws at once."""
    strategy = strategies.load(train.strategy)
    if (name := getattr(strategy, "EXCLUSIVE", None)) is None:
        return
    drawn = options.get(name, signature(strategy.pick).parameters[name].default)
    kept = shrink.rules.keep if isinstance(shrink, ShrinkByEvidence) else 1
    if drawn > max(2, kept):
        what = f"train.options.{name} is {drawn}, and [shrink] may leave fewer types in a slot"
        raise ValueError(f"recipe {recipe.name}: {what}; give {name} = 2, or an evidence with shrink.keep = {drawn}")


def _decode_shrink(recipe: Recipe) -> ShrinkByEvidence | ShrinkByMethod:
    if "method" in recipe.shrink:
        return _decode_method(recipe)
    rules: _Types = _fields_of(ShrinkRules)
    name = recipe.shrink.get("evidence")
    options = {} if name is None else _evidence_options(recipe, name)
    given = _decode_given(recipe, "shrink", recipe.shrink, {"evidence": str, **rules, **options})
    if name is None or not {"drop", "threshold"} & set(given):
        raise ValueError(f"recipe {recipe.name}: [shrink] needs evidence, and drop or threshold; or a method")
    own = {key: given[key] for key in options if key in given}
    _check_parts(recipe, own)
    return ShrinkByEvidence(name, own, ShrinkRules(**{key: given[key] for key in rules if key in given}))


def _check_parts(recipe: Recipe, options: Mapping[str, Any]) -> None:
    """Decode the options of the parts of a rank sum."""
    for part, own in options.get("parts", {}).items():
        given = _decode_given(recipe, f"shrink.parts.{part}", own, _evidence_options(recipe, part))
        _check_parts(recipe, given)


def _evidence_options(recipe: Recipe, name: str) -> dict[str, Any]:
    scores = evidence.load(name).scores
    keywords = [each for each in signature(scores).parameters.values() if each.kind is each.KEYWORD_ONLY]
    if required := [each.name for each in keywords if each.default is each.empty]:
        raise ValueError(f"recipe {recipe.name}: {name} needs a {required[0]}; give the method that has one, padnas")
    return options_of(scores)


def _decode_method(recipe: Recipe) -> ShrinkByMethod:
    name = recipe.shrink["method"]
    methods = {each: strategies.load(each) for each in strategies.names()}
    known = {each: _method_options(module) for each, module in methods.items() if hasattr(module, "shrink")}
    if name not in tuple(known):
        raise ValueError(f"recipe {recipe.name}: no method {name!r} to shrink by; known: {', '.join(known)}")
    types = _fields_of(known[name])
    device = {"device": str} if any(each.name == "cost" for each in fields(known[name])) else {}
    given = _decode_given(recipe, "shrink", recipe.shrink, {"method": str, **device, **types})
    if (profile := given.get("device")) is not None:
        hw_profiles.load(profile)
    return ShrinkByMethod(name, known[name](**{key: given[key] for key in types if key in given}), profile)


def _method_options(module: ModuleType) -> Any:
    """Return the record that a method's ``shrink`` takes as ``options``."""
    return get_args(get_type_hints(module.shrink)["options"])[0]


def _fields_of(record: Any) -> dict[str, Any]:
    """Return the fields of a frozen record of options that a recipe may give: name -> type."""
    hints = get_type_hints(record, include_extras=True)
    return {each.name: hints[each.name] for each in fields(record) if each.metadata.get("recipe", True)}


def _decode_given(recipe: Recipe, section: str, table: Any, types: _Types) -> dict[str, Any]:
    """Return the decoded values of the keys in ``table``. Only the keys of ``types`` are allowed."""
    optional = [(name, kind, None) for name, kind in types.items()]
    decoded = _decode(recipe, section, table, defstruct("Section", optional, forbid_unknown_fields=True, kw_only=True))
    for key in table:
        if _has_nan(table[key]):
            raise ValueError(f"recipe {recipe.name}: {_not_allowed(section, key, table[key], types[key])}")
    return {key: getattr(decoded, key) for key in table}


def _decode(recipe: Recipe, section: str, table: Any, record: type[_Record]) -> _Record:
    types = {each.name: each.type for each in msgspec.structs.fields(record)}
    try:
        return msgspec.convert(table, record)
    except msgspec.ValidationError as error:
        raise ValueError(f"recipe {recipe.name}: {_line(section, table, types, str(error))}") from None


def _line(section: str, table: Any, types: Mapping[str, Any], error: str) -> str:
    """Return one line about the error, from msgspec's message: `Expected `int`, got `str` - at `$.epochs``."""
    if not isinstance(table, dict):
        return f"{section} is {_shown(table)}, expected a table of options"
    if unknown := re.search("unknown field `(.*?)`", error):
        return f"[{section}] has no key {unknown[1]!r}; known: {', '.join(types) or 'none'}"
    if missing := re.search("missing required field `(.+?)`", error):
        return f"[{section}] lacks {missing[1]!r}"
    at = re.search(r"at `\$\.(\w+)", error)
    assert at is not None
    return _not_allowed(section, at[1], table[at[1]], types[at[1]])


def _not_allowed(section: str, key: str, value: Any, kind: Any) -> str:
    return f"{section}.{key} is {_shown(value)}, expected {describe(kind)}"


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def _has_nan(value: Any) -> bool:
    """Return whether a NaN is anywhere in ``value``. Ranges exclude NaN, but a number without a range does not."""
    if isinstance(value, dict):
        return any(map(_has_nan, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_nan, value))
    return bool(value != value)
