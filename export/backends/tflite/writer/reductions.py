"""Lower operators that read a whole axis: sums, extremes, positions of extremes, running sums."""

from __future__ import annotations

import numpy as np
from torch import fx

from hnas.export.backends.tflite.writer.layout import Order, Placed
from hnas.export.backends.tflite.writer.lowering import Graph, Lowering, arguments, operator_name, type_name
from hnas.export.backends.tflite.writer.model import Value, constant_tensor
from hnas.export.graph.nodes import shape_of

_REDUCTIONS = {"mean": "MEAN", "sum": "SUM", "amax": "REDUCE_MAX", "amin": "REDUCE_MIN", "prod": "REDUCE_PROD"}
_REDUCTIONS |= {"any": "REDUCE_ANY", "all": "REDUCE_ALL"}
_POSITIONS = {"argmax": "ARG_MAX", "argmin": "ARG_MIN"}
_INT64 = 4  # the schema's number


def _reduction(graph: Graph, node: fx.Node) -> Placed:
    """Lower a reduction over some axes or all, computed in the type of its result."""
    given, x = arguments(node), graph.placed(node.args[0])
    rank = len(x.order)
    dims = given.get("dim")
    gone = {dim % rank for dim in ([dims] if isinstance(dims, int) else dims or range(rank))}
    keep = bool(given.get("keepdim", False))
    order = x.order if keep else _renumbered(x.order, gone)
    shape = [1 if axis in gone else size for axis, size in zip(x.order, x.value.shape, strict=True)]
    if not keep:
        shape = [size for axis, size in zip(x.order, shape, strict=True) if axis not in gone]
    axes = constant_tensor(sorted(x.axis(dim) for dim in gone))
    source = graph.cast(x.value, type_name(node.meta["val"].dtype))
    return Placed(graph.add(_REDUCTIONS[operator_name(node)], [source, axes], shape, node, keepDims=keep), order)


def _position(graph: Graph, node: fx.Node) -> Placed:
    """Lower argmax and argmin along one axis. The axis is dropped, then added again if the result keeps it."""
    given, x = arguments(node), graph.placed(node.args[0])
    dim = given["dim"] % len(x.order)
    axis = x.axis(dim)
    shape = [size for each, size in enumerate(x.value.shape) if each != axis]
    inputs = [x.value, constant_tensor(np.array(axis, np.int32))]
    found = graph.add(_POSITIONS[operator_name(node)], inputs, shape, node, outputType=_INT64)
    made = Placed(found, _renumbered(x.order, {dim}))
    return graph.moves.reshaped(made, shape_of(node), x.order) if given["keepdim"] else made


def _largest(graph: Graph, node: fx.Node) -> list[Placed]:
    """Lower topk of the largest values, with their positions. The axis is moved to the end."""
    given, x = arguments(node), graph.placed(node.args[0])
    rank = len(x.order)
    dim = given["dim"] % rank
    order = (*(each for each in x.order if each != dim), dim)
    source = graph.moves.moved(x, order)
    shape = (*source.shape[:-1], given["k"])
    values = graph.add("TOPK_V2", [source, constant_tensor(np.array(given["k"], np.int32))], shape, source)
    positions = Value(shape, "int32")
    graph.model.operators[-1].output.append(positions)
    return [Placed(values, order), Placed(graph.cast(positions, "int64"), order)]


def _running_sum(graph: Graph, node: fx.Node) -> Placed:
    """Lower cumsum, computed in the type of its result."""
    given, x = arguments(node), graph.placed(node.args[0])
    axis = constant_tensor(np.array(x.axis(given["dim"]), np.int32))
    source = graph.cast(x.value, type_name(node.meta["val"].dtype))
    return Placed(graph.add("CUMSUM", [source, axis], x.value.shape, node), x.order)


def _renumbered(order: Order, gone: set[int]) -> Order:
    """Return the order of the axes that are left without the program's axes ``gone``."""
    left = [axis for axis in order if axis not in gone]
    return tuple(sorted(left).index(axis) for axis in left)


LOWERINGS: dict[str, Lowering] = {
    **dict.fromkeys(_REDUCTIONS, _reduction),
    **dict.fromkeys(_POSITIONS, _position),
    "topk": _largest,
    "cumsum": _running_sum,
}
