"""Options of a deployment as a user gives them: text and numbers. This module imports neither torch nor numpy.

`hnas.deployment.deploy(...)` and `deploy_network(...)` take these options as keyword parameters.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

from hnas import units

MOST_SCORES = 500  # scores of subnets that a search takes, and that ``hnas-deploy score`` makes
Progress: TypeAlias = Callable[[str, int, int], None]  # stage, steps done, steps in total


# The parts of an annotation below -> the test of a value, and its words.
_TYPES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "str": (lambda value: isinstance(value, str), "text"),
    "int": (lambda value: isinstance(value, int) and not isinstance(value, bool), "a whole number"),
    "bool": (lambda value: isinstance(value, bool), "True or False"),
    "Path": (lambda value: isinstance(value, os.PathLike), "a path"),
    "None": (lambda value: value is None, "None"),
    "tuple[str, ...]": (
        lambda value: isinstance(value, tuple) and all(isinstance(each, str) for each in value),
        "a list of text",
    ),
}
_EXAMPLES = {
    "power": "MAXN_SUPER",
    "max_latency": "5ms",
    "min_accuracy": "92%",
    "max_size": "300KB",
    "budget": "40evals",
    "limit": "25dB|97%",
}
_READERS: Mapping[str, Callable[[str], object]] = {
    "max_latency": units.parse_latency_ms,
    "min_accuracy": units.parse_share,
    "max_size": units.parse_size_bytes,
    "budget": units.parse_budget,
}


@dataclass(frozen=True)
class SearchOptions:
    """The parameters of `hnas.deployment.deploy`, which documents each of them."""

    target: str
    power: str | None = None
    max_latency: str | None = None
    min_accuracy: str | None = None
    max_size: str | None = None
    precision: str | None = None
    budget: str | None = None
    seed: int = 0
    threads: int | None = None
    supernet: Path | str | None = None
    data: Path | str | None = None
    host: str | None = None
    out: Path | str | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        _check_types(self)

    def command(self, target: str) -> str:
        """Return the command that repeats this deployment. ``target`` is the device's own name, not an alias."""
        words = ["hnas-deploy", "--target", target]
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and field.name not in ("target", "out", "seed", "resume"):
                words += [f"--{field.name.replace('_', '-')}", str(value)]
        return shlex.join([*words, "--seed", str(self.seed)])


@dataclass(frozen=True)
class NetworkOptions:
    """The parameters of `hnas.deployment.deploy_network`, which documents each of them."""

    model: str
    target: str
    power: str | None = None
    inputs: tuple[str, ...] | None = None
    dynamic: tuple[str, ...] | None = None
    calibration: Path | str | None = None
    precision: str | None = None
    limit: str | None = None
    classifier: bool = False
    threads: int | None = None
    host: str | None = None
    out: Path | str | None = None

    def __post_init__(self) -> None:
        _check_types(self)

    def search(self) -> SearchOptions:
        """Return the options that both kinds of deployment have."""
        return SearchOptions(
            self.target,
            power=self.power,
            precision=self.precision,
            threads=self.threads,
            host=self.host,
            out=self.out,
        )

    def command(self) -> str:
        """Return the command that repeats this deployment."""
        words = ["hnas-deploy", "export", "--model", self.model, "--target", self.target]
        for shape in self.inputs or ():
            words += ["--input", shape]
        for size in self.dynamic or ():
            words += ["--dynamic", size]
        for name in ("power", "calibration", "precision", "limit", "threads", "host"):
            if (value := getattr(self, name)) is not None:
                words += [f"--{name}", str(value)]
        return shlex.join([*words, "--classifier"] if self.classifier else words)


def _check_types(options: SearchOptions | NetworkOptions) -> None:
    """Raise ValueError where a field has another type than its annotation, before any work starts.

    The text is that of the command line, where it refuses the same value.
    """
    for field in fields(options):
        value, kinds = getattr(options, field.name), str(field.type).split(" | ")
        if value == "":
            raise ValueError(f"{field.name} is empty; leave it out or give a value")
        if not any(_TYPES[kind][0](value) for kind in kinds):
            if field.name in _READERS and isinstance(value, int | float):
                _READERS[field.name](f"{value}")  # raises ValueError for a number without a unit
            example = f", such as {_EXAMPLES[field.name]!r}" if field.name in _EXAMPLES else ""
            words = " or ".join(_TYPES[kind][1] for kind in kinds)
            shown = " ".join(repr(value).split())[:60]
            raise ValueError(f"{field.name} is {shown}, expected {words}{example}")


def silent(_stage: str, _done: int, _total: int) -> None:
    """Ignore the progress of a deployment."""
