"""Options of a deployment as a user gives them: text and numbers. This module imports neither torch nor numpy.

`hnas.deployment.deploy(...)` and `deploy_network(...)` take these options as keyword parameters.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int], None]  # stage, steps done, steps in total


@dataclass(frozen=True)
class SearchOptions:
    """The parameters of `hnas.deployment.deploy`, which documents each of them."""

    target: str
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
    inputs: tuple[str, ...] | None = None
    calibration: Path | str | None = None
    precision: str | None = None
    threads: int | None = None
    host: str | None = None
    out: Path | str | None = None

    def command(self) -> str:
        """Return the command that repeats this deployment."""
        words = ["hnas-deploy", "export", "--model", self.model, "--target", self.target]
        for shape in self.inputs or ():
            words += ["--input", shape]
        for name in ("calibration", "precision", "threads", "host"):
            if (value := getattr(self, name)) is not None:
                words += [f"--{name}", str(value)]
        return shlex.join(words)


def silent(_stage: str, _done: int, _total: int) -> None:
    """Ignore the progress of a deployment."""
