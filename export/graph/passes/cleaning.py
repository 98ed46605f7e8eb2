"""What every graph can do without: no-ops, constants computed again on each call, values that nothing reads."""

import hashlib
from typing import Any

import torch
from torch import Tensor, fx

from hnas.export.graph.nodes import aten, bound, constant, constant_value, edit, substitute
from hnas.export.graph.program import Program

SMALL = 1024  # elements; below that a second copy of a constant costs nothing
_GROWTH = 1 << 16  # elements; a constant that outgrows what it is computed from is not worth more than this

_DROPOUTS = {
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default,
}
_COPIES = {
    aten.alias.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.device,
    aten._to_copy.default,
    aten.type_as.default,
}
_NEUTRAL: dict[Any, int] = {aten.add.Tensor: 0, aten.sub.Tensor: 0, aten.mul.Tensor: 1, aten.div.Tensor: 1}


def drop_dropout(program: Program) -> Program:
    """Remove what does nothing in eval mode.

    1. Dropout: goes. Dropout that stays active in eval mode (``F.dropout(x)``): left alone.
    2. clone, contiguous, alias, detach: go; every ``view`` becomes a ``reshape``, which takes any memory layout.
    3. A conversion to the type that the value has: goes. To another type: left alone.
    4. Adding 0 and multiplying or dividing by 1, type and shape unchanged: goes.
    5. Assertions on types, which capture leaves behind: go.
    """

    def rewrite(module: fx.GraphModule) -> int:
        fired = 0
        for node in list(module.graph.nodes):
            if node.target is aten._assert_tensor_metadata.default:
                module.graph.erase_node(node)
                fired += 1
            elif node.op == "call_function" and (_is_copy(node) or _is_neutral(node)):
                node.replace_all_uses_with(node.args[0])
                module.graph.erase_node(node)
                fired += 1
            elif node.target is aten.view.default:
                node.target = aten.reshape.default
        return fired

    return edit(program, "drop_dropout", rewrite)


def _is_copy(node: fx.Node) -> bool:
    if node.target in _DROPOUTS:
        return not bound(node)["train"]
    return node.target in _COPIES and _keeps_type(node)


def _is_neutral(node: fx.Node) -> bool:
    other = node.args[1] if node.target in _NEUTRAL else None
    return isinstance(other, int | float) and other == _NEUTRAL[node.target] and _keeps_type(node)


def _keeps_type(node: fx.Node) -> bool:
    source = node.args[0]
    before, after = (value.meta.get("val") if isinstance(value, fx.Node) else None for value in (source, node))
    return isinstance(before, Tensor) and isinstance(after, Tensor) and before.dtype == after.dtype


def fold_constants(program: Program) -> Program:
    """Compute once what does not depend on the inputs.

    1. A sub-graph of constants: its results become constants, the rest of it goes.
    2. A random operator: left alone, and all that reads it.
    3. A result of more than 65,536 elements, and more than it comes from: left alone; a file would have to carry it.
    4. Equal constants of at least 1,024 elements: one is kept. Small ones stay: they gain nothing, and quantisers want
       each layer's bias under a name of its own.
    5. Values that nothing reads: go.
    """

    def rewrite(module: fx.GraphModule) -> int:
        before = len(module.graph.nodes)
        module.graph.eliminate_dead_code()
        unread = before - len(module.graph.nodes)
        fired = unread + _evaluate(module)
        module.graph.eliminate_dead_code()  # the parts of what was just computed
        return fired + _unite(module)

    return edit(program, "fold_constants", rewrite)


def _evaluate(module: fx.GraphModule) -> int:
    values: dict[fx.Node, Any] = {}
    computed: list[fx.Node] = []
    for node in module.graph.nodes:
        if node.op == "get_attr":
            values[node] = constant_value(module, node)
        elif node.op == "call_function" and all(source in values for source in node.all_input_nodes) and _is_pure(node):
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: values[source])
            with torch.no_grad():
                result = node.target(*args, **kwargs)
            sources = [values[source] for source in node.all_input_nodes]
            known = sum(value.numel() for value in sources if isinstance(value, Tensor))
            if not isinstance(result, Tensor) or result.numel() <= max(_GROWTH, known):
                values[node] = result
                computed.append(node)
    fired = 0
    for node in computed:
        if isinstance(values[node], Tensor) and any(user not in values for user in node.users):
            substitute(node, constant(module, node, node.name, values[node].detach().clone()))
            fired += 1
    return fired


def _is_pure(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload):
        return getattr(node.target, "__name__", "") == "getitem"
    random = torch.Tag.nondeterministic_seeded in node.target.tags
    return not random and not node.target._schema.is_mutable and bool(node.target._schema.returns)


def _unite(module: fx.GraphModule) -> int:
    first: dict[tuple[Any, ...], fx.Node] = {}
    fired = 0
    for node in [node for node in module.graph.nodes if node.op == "get_attr"]:
        value = constant_value(module, node).detach()
        if value.numel() < SMALL:
            continue
        content = hashlib.sha256(value.contiguous().reshape(-1).view(torch.uint8).numpy().data).digest()
        kept = first.setdefault((tuple(value.shape), value.dtype, content), node)
        if kept is not node:
            node.replace_all_uses_with(kept)
            module.graph.erase_node(node)
            fired += 1
    return fired
