"""Lower operators that only move data. Most of them only rename axes, and write no operator."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from hnas.export.backends.tflite.writer.layout import Placed, plain
from hnas.export.backends.tflite.writer.lowering import (
    BROADCASTING,
    Graph,
    Lowering,
    arguments,
    operator_name,
    type_name,
)
from hnas.export.backends.tflite.writer.model import Value, constant_tensor
from hnas.export.graph.nodes import shape_of

PARTS = 4  # largest number of outputs of a SPLIT in XNNPACK
JOINED = 5  # largest number of inputs of a CONCATENATION in XNNPACK


def _reshape(graph: Graph, node: fx.Node) -> Placed:
    """Lower every change of shape that keeps the sequence of elements."""
    return graph.moves.reshaped(graph.placed(node.args[0]), shape_of(node), graph.wanted(node))


def _permute(graph: Graph, node: fx.Node) -> Placed:
    """Lower permute, transpose, t and mT by renaming axes."""
    x, given = graph.placed(node.args[0]), arguments(node)
    rank = len(x.order)
    dims = list(given.get("dims") or range(rank))
    if operator_name(node) != "permute" and rank > 1:
        first, second = given.get("dim0", -2) % rank, given.get("dim1", -1) % rank  # t and mT swap the last two
        dims[first], dims[second] = second, first
    return x.permuted(dims)


def _expand(graph: Graph, node: fx.Node) -> Placed:
    """Lower expand: to nothing if all readers broadcast, else to BROADCAST_TO."""
    x = graph.placed(node.args[0])
    shape = shape_of(node)
    if x.shape == shape or all(_broadcasts(user, node) for user in node.users):
        return x
    order = plain(len(x.order))
    inputs = [graph.moves.moved(x, order), constant_tensor(shape)]
    return Placed(graph.add("BROADCAST_TO", inputs, shape, node), plain(len(shape)))


def _broadcasts(user: fx.Node, node: fx.Node) -> bool:
    """Return whether ``user`` broadcasts the expanded ``node``, because another operand has the shape of its result."""
    others = [each for each in user.all_input_nodes if each is not node and operator_name(each) != "expand"]
    return operator_name(user) in BROADCASTING and any(shape_of(each) == shape_of(user) for each in others)


def _concatenate(graph: Graph, node: fx.Node) -> Placed:
    """Lower cat, in the order of axes of its parts."""
    given = arguments(node)
    parts, order = graph.together(node, [part for part in given["tensors"] if 0 not in shape_of(part)])
    if any(part.data is not None for part in parts):  # spread() strips leading axes of 1 from constants
        kind = type_name(node.meta["val"].dtype)
        parts = [graph.cast(graph.at(part, order), kind) for part in given["tensors"]]
    axis = order.index(given["dim"] % len(order))
    return Placed(join(graph, node, parts, axis), order)


def _stack(graph: Graph, node: fx.Node) -> Placed:
    """Lower stack as cat along a new axis."""
    given, shape = arguments(node), list(shape_of(node))
    axis = given["dim"] % len(shape)
    shape[axis] = 1
    order = graph.wanted(node)
    parts = [graph.moves.reshaped(graph.placed(part), shape, order) for part in given["tensors"]]
    values = [graph.moves.moved(part, parts[0].order) for part in parts]
    return Placed(join(graph, node, values, parts[0].axis(axis)), parts[0].order)


def _cut(graph: Graph, node: fx.Node) -> Placed:
    """Lower slice to SLICE, or to STRIDED_SLICE if it has a step."""
    given, x = arguments(node), graph.placed(node.args[0])
    size = x.shape[given["dim"]]
    start, end, _ = slice(given["start"], given["end"]).indices(size)
    if given["step"] == 1:
        return sliced(graph, node, x, given["dim"], start, end - start)
    axis = x.axis(given["dim"])
    begin, until, steps = [0] * len(x.order), list(x.value.shape), [1] * len(x.order)
    begin[axis], until[axis], steps[axis] = start, end, given["step"]
    shape = tuple(shape_of(node)[each] for each in x.order)
    inputs = [x.value, constant_tensor(begin), constant_tensor(until), constant_tensor(steps)]
    return Placed(graph.add("STRIDED_SLICE", inputs, shape, node), x.order)


def _select(graph: Graph, node: fx.Node) -> Placed:
    """Lower select: take one index of an axis, and drop the axis."""
    given, x = arguments(node), graph.placed(node.args[0])
    dim = given["dim"] % len(x.order)
    taken = sliced(graph, node, x, dim, given["index"] % x.shape[dim], 1)
    return _without(graph, taken, dim)


def _split(graph: Graph, node: fx.Node) -> list[Placed]:
    """Lower split, split_with_sizes and chunk to one SPLIT, or to a SLICE for each part that is read.

    SPLIT needs equal parts, at most ``PARTS`` of them, that are all read.
    """
    given, x = arguments(node), graph.placed(node.args[0])
    dim = given["dim"] % len(x.order)
    sizes = [int(value.shape[dim]) for value in node.meta["val"]]
    read = {user.args[1] for user in node.users}
    shape = list(x.value.shape)
    if len(set(sizes)) == 1 and 1 < len(sizes) <= PARTS and len(read) == len(sizes) and x.value.dtype != "bool":
        axis = x.axis(dim)
        shape[axis] = sizes[0]
        graph.add("SPLIT", [constant_tensor([axis]), x.value], shape, x.value, numSplits=len(sizes))
        operator = graph.model.operators[-1]
        operator.output += [Value(tuple(shape), x.value.dtype, range=x.value.range) for _ in sizes[1:]]
        return [Placed(value, x.order) for value in operator.output]
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    parts = zip(range(len(sizes)), starts, sizes, strict=True)
    return [sliced(graph, None, x, dim, start, size) if index in read else x for index, start, size in parts]


def _unbind(graph: Graph, node: fx.Node) -> list[Placed]:
    """Lower unbind to a SLICE for each index of the axis."""
    x, dim = graph.placed(node.args[0]), arguments(node)["dim"]
    count = x.shape[dim]
    parts = [sliced(graph, None, x, dim, index, 1) for index in range(count)]
    return [_without(graph, part, dim % len(x.order)) for part in parts]


def _item(graph: Graph, node: fx.Node) -> Placed:
    """Lower getitem: return one of several results."""
    source, index = node.args
    found = graph.values[source]  # type: ignore[index]
    assert isinstance(found, list)
    assert isinstance(index, int)
    return found[index]


def sliced(graph: Graph, node: fx.Node | None, x: Placed, dim: int, start: int, size: int) -> Placed:
    """Return the entries of one axis from ``start`` on. A constant is cut at once."""
    axis = x.axis(dim)
    begin, shape = [0] * len(x.order), list(x.value.shape)
    begin[axis], shape[axis] = start, size
    if x.value.data is not None:
        return Placed(constant_tensor(x.value.data.take(range(start, start + size), axis)), x.order)
    if tuple(shape) == x.value.shape:
        return x
    inputs = [x.value, constant_tensor(begin), constant_tensor(shape)]
    return Placed(graph.add("SLICE", inputs, shape, node or x.value), x.order)


def _without(graph: Graph, x: Placed, dim: int) -> Placed:
    """Return ``x`` without its axis ``dim``, which has size 1."""
    order = tuple(axis - (axis > dim) for axis in x.order if axis != dim)
    return graph.moves.reshaped(x, [size for axis, size in enumerate(x.shape) if axis != dim], order)


def join(graph: Graph, node: fx.Node, parts: Sequence[Value], axis: int) -> Value:
    """Return the parts joined along an axis of the tensors, by as many CONCATENATIONs as XNNPACK needs."""
    while len(parts) > JOINED:
        parts = [_joined(graph, node, parts[:JOINED], axis), *parts[JOINED:]]
    return parts[0] if len(parts) == 1 else _joined(graph, node, parts, axis)


def _joined(graph: Graph, node: fx.Node, parts: Sequence[Value], axis: int) -> Value:
    shape = list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    return graph.add("CONCATENATION", parts, shape, node, axis=axis)


_RESHAPES = ("reshape", "view", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "ravel", "view_as")
LOWERINGS: dict[str, Lowering] = {
    **dict.fromkeys(_RESHAPES, _reshape),
    **dict.fromkeys(("permute", "transpose", "t", "mT"), _permute),
    **dict.fromkeys(("split", "split_with_sizes", "chunk"), _split),
    "expand": _expand,
    "cat": _concatenate,
    "stack": _stack,
    "slice": _cut,
    "select": _select,
    "unbind": _unbind,
    "getitem": _item,
}
