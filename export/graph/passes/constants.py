"""Compute constant sub-graphs once and remove unused values: ``fold_constants(program)``."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from hnas.export.graph.nodes import constant, constant_value, edit, substitute
from hnas.export.graph.program import Program

_SMALL = 1024  # elements; a second copy of a smaller constant costs nothing
_GROWTH = 1 << 16  # elements; the largest result that may be larger than the constants it is computed from


def fold_constants(program: Program) -> Program:
    """Compute each value that does not depend on the inputs, and store it as a constant.

    1. A sub-graph of constants: its results become constants, and its nodes are removed.
    2. A random operator, and everything computed from it: unchanged.
    3. A result of more than 65,536 elements that is larger than its constants: unchanged, to keep the file small.
    4. Equal constants of at least 1,024 elements: merged into one. Smaller ones stay separate, because merging them
       saves nothing and quantisers need a bias of its own for each layer.
    5. Values that nothing reads: removed.
    """

    def rewrite(module: fx.GraphModule) -> int:
        before = len(module.graph.nodes)
        module.graph.eliminate_dead_code()  # case 5
        unread = before - len(module.graph.nodes)
        fired = unread + _replace_results(module)
        module.graph.eliminate_dead_code()  # the operators of the sub-graphs that were just computed
        return fired + _merge_equal(module)

    return edit(program, "fold_constants", rewrite)


def _replace_results(module: fx.GraphModule) -> int:
    """Case 1: replace each constant result that the rest of the graph reads, and return how many there were."""
    values = _constant_values(module)
    fired = 0
    for node in [node for node in values if node.op == "call_function"]:
        if isinstance(values[node], Tensor) and any(user not in values for user in node.users):
            substitute(node, constant(module, node, node.name, values[node].detach().clone()))
            fired += 1
    return fired


def _constant_values(module: fx.GraphModule) -> dict[fx.Node, Any]:
    """Return the value of every node that depends on constants alone, constants included, in graph order."""
    values: dict[fx.Node, Any] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            values[node] = constant_value(module, node)
        elif node.op == "call_function" and all(source in values for source in node.all_input_nodes) and _is_pure(node):
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: values[source])
            with torch.no_grad():
                result = node.target(*args, **kwargs)
            if not _outgrows(result, node, values):
                values[node] = result
    return values


def _outgrows(result: Any, node: fx.Node, values: Mapping[fx.Node, Any]) -> bool:
    """Return True in case 3."""
    sources = [values[source] for source in node.all_input_nodes]
    known = sum(value.numel() for value in sources if isinstance(value, Tensor))
    return isinstance(result, Tensor) and result.numel() > max(_GROWTH, known)


def _is_pure(node: fx.Node) -> bool:
    """Return False for operators that are random (case 2), write in place, or return nothing."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return getattr(node.target, "__name__", "") == "getitem"
    random = torch.Tag.nondeterministic_seeded in node.target.tags
    return not random and not node.target._schema.is_mutable and bool(node.target._schema.returns)


def _merge_equal(module: fx.GraphModule) -> int:
    """Case 4: keep the first of equal large constants, and return how many copies were removed."""
    first: dict[tuple[Any, ...], fx.Node] = {}
    fired = 0
    for node in [node for node in module.graph.nodes if node.op == "get_attr"]:
        value = constant_value(module, node).detach()
        if value.numel() < _SMALL:
            continue
        content = hashlib.sha256(value.contiguous().reshape(-1).view(torch.uint8).numpy().data).digest()
        kept = first.setdefault((tuple(value.shape), value.dtype, content), node)
        if kept is not node:
            node.replace_all_uses_with(kept)
            module.graph.erase_node(node)
            fired += 1
    return fired
