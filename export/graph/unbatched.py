"""Give layers whose input has no batch axis a batch of one: converters and quantisers expect the axis."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten
_LAYERS = ("conv{}d", "conv_transpose{}d", "max_pool{}d", "avg_pool{}d", "adaptive_avg_pool{}d", "adaptive_max_pool{}d")
_RANKS: dict[Any, int] = {
    getattr(aten, name.format(rank)): rank for name in _LAYERS for rank in (1, 2, 3) if hasattr(aten, name.format(rank))
}


def add_batch_axes(module: fx.GraphModule) -> None:
    """Put each convolution or pooling of an unbatched map between a new axis and its removal, in place."""
    for node in list(module.graph.nodes):
        rank = _RANKS.get(getattr(node.target, "overloadpacket", None))
        if rank is None or not isinstance(node.meta.get("val"), torch.Tensor):
            continue
        source, value = node.args[0], node.meta["val"]
        if source.meta["val"].ndim != rank + 1:
            continue
        with module.graph.inserting_before(node):
            batched = module.graph.call_function(aten.unsqueeze.default, (source, 0))
            batched.meta = {**node.meta, "val": source.meta["val"].unsqueeze(0)}
        with module.graph.inserting_after(node):
            plain = module.graph.call_function(aten.squeeze.dim, (node, 0))
            plain.meta = dict(node.meta)
        node.replace_all_uses_with(plain, delete_user_cb=lambda user, plain=plain: user is not plain)
        node.args = (batched, *node.args[1:])
        node.meta["val"] = value.unsqueeze(0)
    module.recompile()
