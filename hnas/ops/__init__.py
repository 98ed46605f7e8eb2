"""Operations: one static module a file; each ends in a layer called ``out``, and with ``out`` zero it adds nothing."""

from __future__ import annotations

import importlib
from functools import cache, lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import nn

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


def build(name: str, cin: int, cout: int, stride: int, **sizes: Any) -> nn.Module:
    """The static module of operation type ``name``.

    On the meta device, where it is shapes without values, a twin of one that was built before with the same sizes: a
    search and a training build thousands of subnets out of some hundred different operations.
    """
    if torch.get_default_device().type == "meta":
        return _twin(_built(name, cin, cout, stride, **sizes))
    return _built.__wrapped__(name, cin, cout, stride, **sizes)


@lru_cache(4096)
def _built(name: str, cin: int, cout: int, stride: int, **sizes: Any) -> nn.Module:
    module: nn.Module = load(name).build(cin, cout, stride, **sizes)
    return module


def _twin(module: nn.Module) -> nn.Module:
    """A copy of ``module`` that shares no part and no parameter with it, by far faster than ``copy.deepcopy``."""
    own = object.__new__(type(module))
    containers = dict, list, set
    vars(own).update({name: v.copy() if isinstance(v, containers) else v for name, v in vars(module).items()})
    own._parameters.update({name: p if p is None else nn.Parameter(p) for name, p in own._parameters.items()})
    own._buffers.update({name: b if b is None else b.detach() for name, b in own._buffers.items()})
    own._modules.update({name: part if part is None else _twin(part) for name, part in own._modules.items()})
    return own
