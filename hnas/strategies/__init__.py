"""Strategies: one file, one published method. ``load(name)`` returns the module; it talks to a ``Study`` alone.

1. A file that trains has ``pick(space, rng, progress=0.0, **options)``, which returns the paths of one step and has no
   state. With architecture parameters it also has ``extra(space)``, which makes them for ``pick(..., extra=...)``.
2. A file that searches has ``search(study, space, options)``.
3. A file that shrinks a space has ``shrink(study, space, options)``, where ``options`` is a frozen record. A recipe's
   [shrink] gives its fields.

No file names a layer: slots come from ``Space.slots``, types from ``hnas.sampling.draws``.
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
