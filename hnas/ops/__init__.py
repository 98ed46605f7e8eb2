"""Operations: one static module a file; each ends in a layer called ``out``, and with ``out`` zero it adds nothing."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

# Building blocks of operations that are not operations themselves.
_PARTS = {"conv", "slot"}


@cache
def names() -> tuple[str, ...]:
    """Every operation type that is a file of this folder."""
    import pkgutil

    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _PARTS))


def load(name: str) -> ModuleType:
    """The module of operation type ``name``; its ``build(cin, cout, stride, **sizes)`` returns the static module."""
    if name not in names():
        raise ValueError(f"no operation {name!r}; known: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")
