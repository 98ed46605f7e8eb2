"""Lower comparisons, logic, choices by a condition, and changes of type."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from hnas.export.backends.tflite.writer.layout import Order, Placed
from hnas.export.backends.tflite.writer.lowering import (
    Graph,
    Lowering,
    arguments,
    operator_name,
    type_name,
)
from hnas.export.backends.tflite.writer.model import Value
from hnas.export.graph.nodes import shape_of

_COMPARISONS = {"eq": "EQUAL", "ne": "NOT_EQUAL", "lt": "LESS", "le": "LESS_EQUAL", "gt": "GREATER"}
_COMPARISONS |= {"ge": "GREATER_EQUAL"}
_LOGIC = {"logical_and": "LOGICAL_AND", "logical_or": "LOGICAL_OR", "logical_xor": "NOT_EQUAL"}
_CASTS = ("_to_copy", "to", "type_as", "prims::convert_element_type")


def _comparison(graph: Graph, node: fx.Node) -> Placed:
    """Lower a comparison of two values, in the type that torch promotes both to. Bools are compared as int32."""
    given = arguments(node)
    left, right = given["self"], given["other"]
    dtype = torch.result_type(*(each.meta["val"] if isinstance(each, fx.Node) else each for each in (left, right)))
    name = operator_name(node)
    if dtype is torch.bool and name not in ("eq", "ne"):
        dtype = torch.int32
    return _joined(graph, node, _COMPARISONS[name], *graph.together(node, [left, right], dtype))


def _logic(graph: Graph, node: fx.Node) -> Placed:
    """Lower and, or and xor of two conditions."""
    given = arguments(node)
    operands = graph.together(node, [given["self"], given["other"]], torch.bool)
    return _joined(graph, node, _LOGIC[operator_name(node)], *operands)


def _not(graph: Graph, node: fx.Node) -> Placed:
    """Lower the negation of a condition."""
    x = graph.placed(node.args[0])
    return Placed(graph.add("LOGICAL_NOT", [graph.cast(x.value, "bool")], x.value.shape, node), x.order)


def _where(graph: Graph, node: fx.Node) -> Placed:
    """Lower a choice between two values by a condition."""
    given = arguments(node)
    parts = [given["condition"], given["self"], given["other"]]
    (condition, *_), order = graph.together(node, parts, torch.bool)
    rank = len(shape_of(node))
    kind = type_name(node.meta["val"].dtype)
    choices = [graph.cast(graph.spread(graph.placed(part), rank, order), kind) for part in parts[1:]]
    return _joined(graph, node, "SELECT_V2", [condition, *choices], order)


def _cast(graph: Graph, node: fx.Node) -> Placed:
    """Lower a change of type. Moving to a device, or to another layout in memory, has no effect."""
    x = graph.placed(node.args[0])
    return Placed(graph.cast(x.value, type_name(node.meta["val"].dtype), node), x.order)


def _joined(graph: Graph, node: fx.Node, kind: str, operands: list[Value], order: Order, **options: Any) -> Placed:
    shape = tuple(shape_of(node)[axis] for axis in order)
    return Placed(graph.add(kind, operands, shape, node, **options), order)


LOWERINGS: dict[str, Lowering] = {
    **dict.fromkeys(_COMPARISONS, _comparison),
    **dict.fromkeys(_LOGIC, _logic),
    **dict.fromkeys(_CASTS, _cast),
    "logical_not": _not,
    "where": _where,
}
