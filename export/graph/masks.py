"""Replace updates by a boolean mask by ``where``, and name what else has a size that depends on values.

``y[y < 0] *= 0.1`` reads the values under the mask, changes them and writes them back. The number of these values is
not known when the graph is made, and no runtime takes it. With ``where`` every value has a known size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from hnas.export.device.errors import ExportError

aten = torch.ops.aten
_READS, _WRITES = aten.index.Tensor, aten.index_put.default
_GUARDS = {aten._assert_scalar.default, aten.sym_constrain_range.default, aten.sym_constrain_range_for_size.default}


def masks_by_where(module: fx.GraphModule) -> None:
    """Rewrite updates by a mask in place, in a graph without operators that write.

    1. ``y[m] = v`` with one value ``v``: ``where(m, v, y)``.
    2. ``y[m] = f(x[m], z[m])`` with elementwise ``f`` and the same mask: ``where(m, f(x, z), y)``.
    3. Any other value whose size depends on values: refused, with its operator and the path of its module.

    Raises:
        ExportError: case 3.
    """
    if not any(map(_depends_on_values, module.graph.nodes)) and not any(
        n.target is _WRITES for n in module.graph.nodes
    ):
        return
    for node in list(module.graph.nodes):
        mask = _mask(node, _WRITES)
        if mask is not None and (value := _full(node.args[2], mask, node)) is not None:
            with module.graph.inserting_before(node):
                wide = _as_wide(module.graph, mask, node.args[0])
                new = module.graph.call_function(aten.where.self, (wide, value, node.args[0]))
            new.meta = dict(node.meta)
            node.replace_all_uses_with(new)
            module.graph.erase_node(node)
    for node in reversed(list(module.graph.nodes)):
        if node.op == "call_function" and (not node.users) and (node.target in _GUARDS or not _is_guard(node)):
            module.graph.erase_node(node)
    for node in module.graph.nodes:
        if _depends_on_values(node):
            raise ExportError(f"the size of {_called(node)} depends on values; compute it outside of the network")
    module.recompile()


def _mask(node: Any, target: Any) -> fx.Node | None:
    """Return the mask of a read or a write by one boolean mask; None for any other node."""
    if not isinstance(node, fx.Node) or node.target is not target or len(node.args) > 3:
        return None
    indices: Any = node.args[1]
    mask = indices[0] if len(indices) == 1 else None
    return mask if isinstance(mask, fx.Node) and mask.meta["val"].dtype is torch.bool else None


def _full(value: Any, mask: fx.Node, write: Any) -> fx.Node | None:
    """Return ``value`` computed at every place instead of under ``mask``, before ``write``; None if it cannot be."""
    target = write.args[0].meta["val"]
    made: dict[fx.Node, fx.Node] = {}

    def widened(node: Any) -> fx.Node | None:
        if node in made:
            return made[node]
        known = node.meta["val"]
        if not _has_unknown_size(known):
            single: fx.Node | None = node if isinstance(known, Tensor) and known.numel() == 1 else None  # case 1
            return single
        found = _mask(node, _READS)
        if found is not None and _same(found, mask):
            source: fx.Node = node.args[0]
            return source if source.meta["val"].shape == target.shape else None
        if not _is_elementwise(node):
            return None
        parts = {part: widened(part) for part in node.all_input_nodes}
        if any(part is None for part in parts.values()):
            return None
        with write.graph.inserting_before(write):
            copy: fx.Node = write.graph.node_copy(node, lambda part: parts[part])
        made[node] = copy
        copy.meta["val"] = target.new_empty(target.shape, dtype=known.dtype)
        return copy

    return widened(value)


def _same(one: Any, other: Any) -> bool:
    """Return whether two nodes compute the same: a module may write its mask out twice."""
    if one is other or not (isinstance(one, fx.Node) and isinstance(other, fx.Node)):
        return one is other or (not isinstance(one, fx.Node) and one == other)
    if one.op != "call_function" or one.target is not other.target or one.kwargs or other.kwargs:
        return False
    if torch.Tag.nondeterministic_seeded in getattr(one.target, "tags", ()):
        return False
    return len(one.args) == len(other.args) and all(map(_same, one.args, other.args))


def _is_elementwise(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return torch.Tag.pointwise in tags or node.target in (aten.to.dtype, aten.clone.default, aten._to_copy.default)


def _as_wide(graph: fx.Graph, mask: fx.Node, target: fx.Node) -> fx.Node:
    """Return the mask with as many dimensions as ``target``: a mask selects along the first ones."""
    have, want = mask.meta["val"], target.meta["val"]
    if have.ndim == want.ndim:
        return mask
    shape = [*have.shape, *[1] * (want.ndim - have.ndim)]
    wide = graph.call_function(aten.reshape.default, (mask, shape))
    wide.meta["val"] = have.new_empty(shape)
    return wide


def _is_guard(node: fx.Node) -> bool:
    """Return whether a node without readers must stay, because it has an effect."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _depends_on_values(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return any(map(_has_unknown_size, value if isinstance(value, tuple | list) else [value]))


def _has_unknown_size(value: Any) -> bool:
    return isinstance(value, Tensor | torch.SymInt | torch.SymBool) and bool(free_unbacked_symbols(value))


def _called(node: fx.Node) -> str:
    stack = [path for path, *_ in node.meta.get("nn_module_stack", {}).values() if path]
    return f"{node.target}{f' in {stack[-1]}' if stack else ''}"
