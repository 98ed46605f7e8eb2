"""Strategies: one file, one published method; each talks to a ``Study`` and nothing else.

A file that trains has ``pick(space, rng, progress=0.0, **options)``, the paths of one step, and keeps no state; where
it has architecture parameters, also ``extra(space)``, which makes what ``pick`` takes as ``extra``. A file that
searches has ``search(study, space, ...)``. None names a layer: slots come from ``Space.slots``, types from
``hnas.sampling.draws``.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def names() -> tuple[str, ...]:
    """Every strategy that is a file of this folder."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__)))


def load(name: str) -> ModuleType:
    """The module of strategy ``name``.

    It has ``pick`` where it trains, ``search`` where it searches.
    """
    if name not in names():
        raise ValueError(f"no strategy {name!r}; known: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")
