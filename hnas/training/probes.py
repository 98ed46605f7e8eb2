"""Forward hooks that watch a running network: outputs of its modules, and the first output that is not finite."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def outputs_of(net: nn.Module, slots: Collection[str], cut: str | None = None) -> Iterator[dict[str, Tensor]]:
    """Yield a dictionary that fills with the outputs of the modules ``slots`` of ``net``: slot -> output.

    cut: a slot into whose input no gradient passes; None: no such slot.
    """
    seen: dict[str, Tensor] = {}

    def keep(slot: str) -> Callable[..., None]:
        def hook(_: Any, args: Any, output: Tensor) -> None:
            del args
            seen[slot] = output

        return hook

    hooks = [net.get_submodule(slot).register_forward_hook(keep(slot)) for slot in slots]
    if cut is not None:
        shut = net.get_submodule(cut).register_forward_pre_hook(lambda _, args: tuple(x.detach() for x in args))
        hooks.append(shut)
    try:
        yield seen
    finally:
        for each in hooks:
            each.remove()


@contextmanager
def first_not_finite(net: nn.Module) -> Iterator[list[str]]:
    """Yield a list that receives the path of the first module of ``net`` whose output has NaN or infinity.

    A module runs after its inner modules, so the path is that of the innermost module.
    """
    found: list[str] = []

    def look(path: str) -> Callable[..., None]:
        def hook(_: Any, args: Any, output: Any) -> None:
            del args
            if not found and isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
                found.append(path)

        return hook

    hooks = [module.register_forward_hook(look(path)) for path, module in net.named_modules() if path]
    try:
        yield found
    finally:
        for each in hooks:
            each.remove()
