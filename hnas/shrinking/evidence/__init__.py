"""Evidence: one file, one answer to what an operation is worth.

Each has ``scores(study, space, **options) -> {(choice, option): worth}`` over the slots that still offer two types;
the lowest goes first. What may be dropped for it is decided in ``hnas.shrinking.loop``.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def names() -> tuple[str, ...]:
    """Every evidence that is a file of this folder."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__)))


def load(name: str) -> ModuleType:
    """The module of evidence ``name``."""
    if name not in names():
        raise ValueError(f"no evidence {name!r}; known: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")
