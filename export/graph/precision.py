"""Compute a graph in float32, whatever floats its module has: ``in_float32(graph_module)``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

_OTHERS = (torch.float16, torch.bfloat16, torch.float64)
_CASTS = {torch.ops.aten.to.dtype, torch.ops.aten.to.dtype_layout, torch.ops.aten._to_copy.default}


def in_float32(module: fx.GraphModule) -> tuple[str, ...]:
    """Convert weights, values and casts of other floats to float32, in place. Return the names of these types.

    Casts between floats become no-ops and are removed.
    """
    found = {value.dtype for value in _tensors(module)} & set(_OTHERS)
    if not found:
        return ()
    module.float()
    for name, value in vars(module).items():
        if isinstance(value, Tensor) and value.dtype in _OTHERS:
            setattr(module, name, value.float())
    for node in list(module.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            module.graph.erase_node(node)
            continue
        node.args, node.kwargs = map_aggregate((node.args, node.kwargs), _single)
        if "val" in node.meta:
            node.meta["val"] = map_aggregate(node.meta["val"], _described)
        source = node.args[0] if node.target in _CASTS else None
        if isinstance(source, fx.Node) and source.meta["val"].dtype is node.meta["val"].dtype is torch.float32:
            node.replace_all_uses_with(source)
            module.graph.erase_node(node)
    module.recompile()
    return tuple(sorted(str(dtype).removeprefix("torch.") for dtype in found))


def _tensors(module: fx.GraphModule) -> list[Tensor]:
    values: list[Any] = list(module.state_dict().values())
    for node in module.graph.nodes:
        values += node.meta["val"] if isinstance(node.meta.get("val"), tuple | list) else [node.meta.get("val")]
    return [value for value in values if isinstance(value, Tensor)]


def _single(value: Any) -> Any:
    return torch.float32 if value in _OTHERS and isinstance(value, torch.dtype) else value


def _described(value: Any) -> Any:
    if not isinstance(value, Tensor) or value.dtype not in _OTHERS:
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=torch.float32, device="meta")
