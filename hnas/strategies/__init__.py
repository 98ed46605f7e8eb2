"""Strategies: each file of this folder is one method. ``load(name)`` returns the file as a module.

- A file that trains has ``pick(space, rng, progress=0.0, **options)``, which returns the paths of one step and has no
  state. If the method has architecture parameters, ``extra(space)`` makes them for ``pick(..., extra=...)``.
- A file that searches has ``search(study, space, options)``.
- A file that shrinks a space has ``shrink(study, space, options)``, where ``options`` is a frozen record. The section
  [shrink] of a recipe sets its fields.

A strategy uses no layer by name. It reads slots from ``Space.slots`` and types with ``hnas.sampling.draws``.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def names() -> tuple[str, ...]:
    """Return the name of every strategy: the files of this folder."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__)))


def load(name: str) -> ModuleType:
    """Return the module of strategy ``name``; raise ValueError for an unknown name."""
    if name not in names():
        raise ValueError(f"no strategy {name!r}; known: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")
