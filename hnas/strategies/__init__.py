"""Strategies: one file, one published method; each talks to a ``Study`` and nothing else."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def names() -> tuple[str, ...]:
    """Every strategy that is a file of this folder."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__)))


def load(name: str) -> ModuleType:
    """The module of strategy ``name``.

    It has ``pick(space, rng)`` where it trains, ``search(study, space, ...)`` where it searches.
    """
    if name not in names():
        raise ValueError(f"no strategy {name!r}; known: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")
