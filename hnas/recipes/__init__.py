"""Recipes: one small TOML file per experiment that anybody can repeat with ``hnas-train --recipe NAME``."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

_SECTIONS = ("space", "data", "train", "shrink")


@dataclass(frozen=True)
class Recipe:
    """space: name and arguments; data: size, channels and augmentation; train: strategy, epochs, batch and schedule.

    shrink: evidence and how many operations go between two cycles of the schedule, or a published method; empty: none.
    """

    name: str
    space: Mapping[str, Any]
    data: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    shrink: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object whose keys are the fields."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def names() -> tuple[str, ...]:
    """Every recipe that is shipped."""
    found = resources.files("hnas.recipes").iterdir()
    return tuple(sorted(f.name.removesuffix(".toml") for f in found if f.name.endswith(".toml")))


def load(name: str) -> Recipe:
    """The shipped recipe ``name``, or the one in the file of that name when it ends in .toml."""
    if name.endswith(".toml"):
        file = Path(name)
        if not file.is_file():
            raise FileNotFoundError(f"no recipe file {file}")
        return _parse(file.stem, file.read_text(encoding="utf-8"))
    if name not in names():
        raise ValueError(f"no recipe {name!r}; known: {', '.join(names())}, or the path of a .toml file")
    return _parse(name, (resources.files("hnas.recipes") / f"{name}.toml").read_text(encoding="utf-8"))


def _parse(name: str, text: str) -> Recipe:
    try:
        record = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"recipe {name}: {error}") from None
    unknown = [key for key, section in record.items() if key not in _SECTIONS or not isinstance(section, dict)]
    if unknown or not isinstance(record.get("space", {}).get("name"), str):
        wrong = f"unknown section [{unknown[0]}]" if unknown else "no name in [space]"
        raise ValueError(f"recipe {name}: {wrong}; sections are {', '.join(_SECTIONS)}")
    return Recipe(name, record["space"], record.get("data", {}), record.get("train", {}), record.get("shrink", {}))
