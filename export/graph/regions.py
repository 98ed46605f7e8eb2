"""Inline the regions of a captured graph that a context manager made, such as ``torch.no_grad``: a graph in a graph."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from hnas.export.device.errors import ExportError

_AUTOCAST = "wrap_with_autocast"
_REGIONS = {_AUTOCAST: 4, "wrap_with_set_grad_enabled": 1}  # the place of the region's graph among the arguments


def inline_regions(module: fx.GraphModule) -> fx.GraphModule:
    """Replace each region of ``module`` by its operators, in place, and return ``module``.

    1. ``torch.no_grad`` and ``torch.enable_grad``: they change no value.
    2. ``torch.autocast(..., enabled=False)``: its operators compute in the types of their inputs.
    3. ``torch.autocast`` that is enabled: refused, because the artifact would compute in another precision.

    Raises:
        ExportError: case 3.
    """
    inlined = False
    while regions := [node for node in module.graph.nodes if _name(node) in _REGIONS]:  # they may be nested
        for node in regions:
            _inline(module, node)
        inlined = True
    if inlined:
        module.graph.eliminate_dead_code()
        module.recompile()
    return module


def _name(node: fx.Node) -> str:
    is_region = isinstance(node.target, torch._ops.HigherOrderOperator)
    return getattr(node.target, "__name__", "") if is_region else ""


def _inline(module: fx.GraphModule, node: fx.Node) -> None:
    place = _REGIONS[_name(node)]
    if _name(node) == _AUTOCAST and node.args[2]:  # case 3
        raise ExportError(
            f"the network computes in {node.args[1]} by torch.autocast; leave it out, or set enabled=False"
        )
    source, inputs = node.args[place], node.args[place + 1 :]
    assert isinstance(source, fx.Node)
    region = module.get_submodule(str(source.target))
    assert isinstance(region, fx.GraphModule)
    places = iter(inputs)
    copies: dict[fx.Node, Any] = {}
    with module.graph.inserting_before(node):
        for inner in region.graph.nodes:
            if inner.op == "placeholder":
                copies[inner] = next(places)
            elif inner.op == "output":
                results: Any = fx.map_arg(inner.args[0], lambda value: copies[value])
            else:
                copies[inner] = module.graph.node_copy(inner, lambda value: copies[value])
                if inner.op == "get_attr":  # the graph of a nested region; it stays below the one that is inlined
                    copies[inner].target = f"{source.target}.{inner.target}"
    for user in list(node.users):
        if user.target is operator.getitem:
            user.replace_all_uses_with(results[user.args[1]])
            module.graph.erase_node(user)
    if node.users:
        node.replace_all_uses_with(results[0] if isinstance(results, tuple | list) else results)
    module.graph.erase_node(node)
