"""Operations of a network. Each file of this folder defines one operation, which has the name of the file.

``ops.build("mbconv", 16, 24, stride=2, kernel=5, expansion=4, act="relu")`` returns the module.

The last layer of an operation is called ``out``. If the weights of ``out`` are zero, the operation adds nothing.
"""

from __future__ import annotations

import importlib
from functools import cache, lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import nn

# Files with building blocks, which are not operations.
_PARTS = {"cell", "conv", "folded", "highway", "slot"}


@cache
def names() -> tuple[str, ...]:
    """Return the name of every operation, which is the name of its file."""
    import pkgutil

    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _PARTS))


def load(name: str) -> ModuleType:
    """Import and return the file of the operation ``name``. It has ``build(cin, cout, stride, **sizes)``.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in names():
        raise ValueError(f"no operation {name!r}; known: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def build(name: str, cin: int, cout: int, stride: int, **sizes: Any) -> nn.Module:
    """Return the static module of the operation ``name``.

    cin: number of input channels.
    cout: number of output channels.
    stride: factor by which height and width are divided.
    sizes: further arguments of the operation, such as ``kernel``, ``expansion`` and ``act``.

    On the meta device, equal operations are built once and then copied. A search builds thousands of subnets from about
    a hundred different operations.

    Raises:
        ValueError: the operation is unknown, or it cannot have these sizes.
    """
    if torch.get_default_device().type == "meta":
        return _twin(_built(name, cin, cout, stride, **sizes))
    return _built.__wrapped__(name, cin, cout, stride, **sizes)


@lru_cache(4096)
def _built(name: str, cin: int, cout: int, stride: int, **sizes: Any) -> nn.Module:
    module: nn.Module = load(name).build(cin, cout, stride, **sizes)
    return module


def _twin(module: nn.Module) -> nn.Module:
    """Return a copy of ``module`` without shared layers or parameters, much faster than ``copy.deepcopy``."""
    own = object.__new__(type(module))
    containers = dict, list, set
    vars(own).update({name: v.copy() if isinstance(v, containers) else v for name, v in vars(module).items()})
    own._parameters.update({name: p if p is None else nn.Parameter(p) for name, p in own._parameters.items()})
    own._buffers.update({name: b if b is None else b.detach() for name, b in own._buffers.items()})
    own._modules.update({name: part if part is None else _twin(part) for name, part in own._modules.items()})
    return own
