"""Recipes: TOML files of experiments. ``load(name)`` reads a recipe, and ``hnas-train --recipe NAME`` runs it."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

from hnas.files import read_plain
from hnas.nearest import did_you_mean

_LARGEST = 2**20  # bytes of a recipe
_OF_TASK = ("batch", "smoothing", "distil", "divergence")  # keys of [train] with which the images are opened
_SECTIONS = ("space", "data", "train", "shrink", "pretrained", "short", "grow")


@dataclass(frozen=True)
class Recipe:
    """The tables of a recipe, as its file gives them; ``hnas.recipes.schema`` checks them.

    space: name and arguments.
    data: task, size, channels and augmentation.
    train: strategy, epochs, batch and schedule.
    shrink: an evidence and its rules, or a published method; empty: the space does not shrink.
    pretrained: the network whose weights a run begins with, and keys that replace those of the other sections; empty:
        random weights (``hnas.recipes.start``).
    short: keys that replace those of space and train if the epochs do not fit into the minutes that are given
        (``hnas.recipes.length``); empty: none.
    grow: the rules by which a network grows (``hnas.growth.loop.GrowthRules``); empty: it does not.
    """

    name: str
    space: Mapping[str, Any]
    data: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    shrink: Mapping[str, Any] = field(default_factory=dict)
    pretrained: Mapping[str, Any] = field(default_factory=dict)
    short: Mapping[str, Any] = field(default_factory=dict)
    grow: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object whose keys are the fields, without an empty ``pretrained``, ``short`` or ``grow``."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {key: value for key, value in found.items() if value or key not in ("pretrained", "short", "grow")}


def names() -> tuple[str, ...]:
    """Return the name of every shipped recipe."""
    found = resources.files("hnas.recipes").iterdir()
    return tuple(sorted(f.name.removesuffix(".toml") for f in found if f.name.endswith(".toml")))


def load(name: str) -> Recipe:
    """Return the shipped recipe ``name``, or the one in the file ``name`` if it ends in .toml.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is no such recipe, or the file is not a recipe.
    """
    if name.endswith(".toml"):
        file = Path(name)
        if not file.is_file():
            raise FileNotFoundError(f"no recipe file {file}")
        try:
            text = read_plain(file, _LARGEST).decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"recipe file {file} is no UTF-8 text: {error}") from None
        return _parse(file.stem, text)
    if name not in names():
        mend = did_you_mean(name, names())
        raise ValueError(f"no recipe {name!r}{mend}; known: {', '.join(names())}, or the path of a .toml file")
    return _parse(name, (resources.files("hnas.recipes") / f"{name}.toml").read_text(encoding="utf-8"))


def check_length(epochs: float | None, minutes: float | None) -> None:
    """Raise ValueError if epochs and minutes say nonsense about the length of a training. None: not given."""
    for name, given in (("epochs", epochs), ("minutes", minutes)):
        if given is not None and not 0 < given < math.inf:
            raise ValueError(f"{name} is {given}, expected a finite number above 0")
    if epochs is not None and minutes is not None:
        raise ValueError("epochs and minutes both say how long to train; give one of them")


def check_subnet(name: str, others: Sequence[str] = ()) -> None:
    """Raise ValueError unless ``name`` is smallest, largest or random:SEED, which every space has, or in ``others``."""
    seed = name.removeprefix("random:")
    words = ("smallest", "largest", *others)
    if name in words or (seed != name and seed.isdecimal()):
        return
    known = ("smallest", "largest", "random:SEED", *others)
    raise ValueError(f"no architecture {name!r}{did_you_mean(name, words)}; known: {', '.join(known)}")


def _parse(name: str, text: str) -> Recipe:
    try:
        record = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"recipe {name}: {error}") from None
    except RecursionError:
        raise ValueError(f"recipe {name}: nested too deeply") from None
    unknown = [key for key, section in record.items() if key not in _SECTIONS or not isinstance(section, dict)]
    if unknown or not isinstance(record.get("space", {}).get("name"), str):
        wrong = f"unknown section [{unknown[0]}]" if unknown else "no name in [space]"
        raise ValueError(f"recipe {name}: {wrong}; sections are {', '.join(_SECTIONS)}")
    check_short(name, "short", record.get("short", {}))
    return Recipe(name, record["space"], *(record.get(key, {}) for key in _SECTIONS[1:]))


def check_short(name: str, section: str, table: Mapping[str, Any]) -> None:
    """Raise ValueError unless ``section`` replaces keys of space and train that are read after its length is chosen."""
    check_tables(name, section, table, ("space", "train"))
    if fixed := [key for key in table.get("train", {}) if key in _OF_TASK]:
        raise ValueError(
            f"recipe {name}: {section}.train cannot replace {fixed[0]}, which is read before; give [train]"
        )


def check_tables(name: str, section: str, table: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raise ValueError unless the keys of ``section`` are among ``known`` and its values are tables.

    name: of the recipe.
    """
    if unknown := [key for key in table if key not in known]:
        raise ValueError(f"recipe {name}: [{section}] has no key {unknown[0]!r}; known: {', '.join(known)}")
    if wrong := [key for key, value in table.items() if not isinstance(value, dict)]:
        raise ValueError(f"recipe {name}: {section}.{wrong[0]} is no table of keys")
