"""Evidence: ways to score operations. ``load(name).scores(study, space)`` returns the scores.

Each file of this folder has ``scores(study, space, **options) -> {(choice, option): worth}`` over the slots that still
offer two types. Operations with the lowest scores are dropped first, by the rules of ``hnas.shrinking.edits``. A recipe
can set every keyword parameter whose type TOML can express.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def names() -> tuple[str, ...]:
    """Return the name of every evidence: the files of this folder."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__)))


def load(name: str) -> ModuleType:
    """Return the module of evidence ``name``; raise ValueError for an unknown name."""
    if name not in names():
        raise ValueError(f"no evidence {name!r}; known: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")
