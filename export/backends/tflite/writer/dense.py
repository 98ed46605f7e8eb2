"""Lower matrix products, attention, norms and softmax."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import fx

from hnas.export.backends.tflite.writer.layout import Order, Placed, plain
from hnas.export.backends.tflite.writer.lowering import Graph, Lowering, Unsupported, arguments
from hnas.export.backends.tflite.writer.model import Value, constant_tensor
from hnas.export.graph.nodes import shape_of

_MASKED = -1e9  # replaces the infinity of a mask; its exponential is also 0


def _linear(graph: Graph, node: fx.Node) -> Placed:
    """Lower linear with a constant weight, over the last axis. The other axes keep their order."""
    given = arguments(node)
    weight = graph.constant(given["weight"], "linear with a weight")
    bias = None if given["bias"] is None else constant_tensor(graph.constant(given["bias"], "a bias"))
    return _product(graph, node, graph.placed(given["input"]), constant_tensor(weight), bias)


def _matmul(graph: Graph, node: fx.Node) -> Placed:
    """Lower matmul, bmm and mm of two activations. With a constant matrix, they become a linear without bias."""
    left, right = graph.placed(node.args[0]), graph.placed(node.args[1])
    if min(len(left.order), len(right.order)) < 2:
        raise Unsupported("matmul with a vector")
    if right.value.data is not None and len(right.order) == 2:
        weight = constant_tensor(np.asarray(graph.moves.moved(right, (1, 0)).data))
        return _product(graph, node, left, weight, None)
    if len(left.order) != len(right.order):
        raise Unsupported("matmul of different ranks")
    return Placed(_multiplied(graph, left, right, shape_of(node), node), plain(len(left.order)))


def _addmm(graph: Graph, node: fx.Node) -> Placed:
    """Lower bias + x @ constant matrix."""
    given = arguments(node)
    weight = graph.constant(given["mat2"], "addmm with a matrix").T
    if (given["alpha"], given["beta"]) != (1, 1) or len(shape_of(given["self"])) != 1:
        raise Unsupported("addmm with factors or a matrix to add")
    bias = constant_tensor(graph.constant(given["self"], "a bias"))
    return _product(graph, node, graph.placed(given["mat1"]), constant_tensor(weight), bias)


def _attention(graph: Graph, node: fx.Node) -> Placed:
    """Lower scaled_dot_product_attention. The scale multiplies the query, and can be folded into its weights."""
    given = arguments(node)
    if given["is_causal"] or given["enable_gqa"] or len(shape_of(node)) < 3:
        raise Unsupported("scaled_dot_product_attention with is_causal or enable_gqa")
    query, key, value = (graph.placed(given[name]) for name in ("query", "key", "value"))
    factor = given["scale"] or 1 / math.sqrt(query.shape[-1])
    seen = graph.range_of(query.value)
    spread = None if seen is None else (factor * seen[0], factor * seen[1])
    scale = constant_tensor(np.array([factor], np.float32))
    scaled = Placed(graph.add("MUL", [query.value, scale], query.value.shape, spread), query.order)
    rank = len(query.order)
    shape = (*shape_of(node)[:-1], key.shape[-2])
    turned = key.permuted((*range(rank - 2), rank - 1, rank - 2))
    scores = _multiplied(graph, scaled, turned, shape, None)
    if given["attn_mask"] is not None:
        mask = graph.constant(given["attn_mask"], "attention with a mask")
        mask = np.where(mask, 0.0, _MASKED) if mask.dtype == bool else np.maximum(mask, _MASKED)
        scores = graph.add("ADD", [scores, constant_tensor(mask.astype(np.float32))], shape)
    weights = Placed(graph.add("SOFTMAX", [scores], shape, beta=1.0), plain(rank))
    return Placed(_multiplied(graph, weights, value, shape_of(node), node), plain(rank))


def _softmax(graph: Graph, node: fx.Node) -> Placed:
    """Lower softmax over one axis, which is moved to the end."""
    x, dim = graph.placed(node.args[0]), arguments(node)["dim"]
    order = _last(x.order, dim % len(x.order))
    value = graph.moves.moved(x, order)
    return Placed(graph.add("SOFTMAX", [value], value.shape, node, beta=1.0), order)


def _layer_norm(graph: Graph, node: fx.Node) -> Placed:
    """Lower layer_norm over its last axes: (x - mean) / sqrt(variance + eps).

    ``prepare`` has separated its weight and bias.
    """
    given, x = arguments(node), graph.placed(node.args[0])
    rank, count = len(x.order), len(given["normalized_shape"])
    axes = constant_tensor(sorted(x.axis(axis) for axis in range(rank - count, rank)))
    shape = x.value.shape
    small = [1 if axis >= rank - count else size for axis, size in zip(x.order, shape, strict=True)]
    mean = graph.add("MEAN", [x.value, axes], small, keepDims=True)
    centred = graph.add("SUB", [x.value, mean], shape)
    square = graph.add("SQUARE", [centred], shape)
    variance = graph.add("MEAN", [square, axes], small, keepDims=True)
    raised = graph.add("ADD", [variance, constant_tensor(np.array([given["eps"]], np.float32))], small)
    inverse = graph.add("RSQRT", [raised], small)
    if given["weight"] is not None or given["bias"] is not None:
        raise Unsupported("layer_norm with a weight, which the program was not prepared for")
    return Placed(graph.add("MUL", [centred, inverse], shape, node), x.order)


def _batch_norm(graph: Graph, node: fx.Node) -> Placed:
    """Lower a batch_norm that no layer absorbed: a factor and an offset for each channel."""
    given = arguments(node)
    if given["training"] or given["running_mean"] is None:
        raise Unsupported("batch_norm on the moments of the batch")
    names = ("running_mean", "running_var", "weight", "bias")
    parts = [None if given[name] is None else graph.constant(given[name], name).astype(np.float64) for name in names]
    mean, variance, gamma, beta = parts
    assert mean is not None
    assert variance is not None
    factor = (1.0 if gamma is None else gamma) / np.sqrt(variance + given["eps"])
    offset = (0.0 if beta is None else beta) - mean * factor
    x, rank = graph.placed(given["input"]), len(shape_of(node))
    shape = (1, -1, *[1] * (rank - 2))
    value = x.value
    for kind, numbers in (("MUL", factor), ("ADD", offset)):
        operand = Placed(constant_tensor(numbers.astype(np.float32).reshape(shape)), plain(rank))
        value = graph.add(kind, [value, graph.spread(operand, rank, x.order)], value.shape, node)
    return Placed(value, x.order)


def _product(graph: Graph, node: fx.Node, x: Placed, weight: Value, bias: Value | None) -> Placed:
    """Add FULLY_CONNECTED over the program's last axis; the other axes keep their order."""
    rank = len(x.order)
    order = _last(x.order, rank - 1)
    value = graph.moves.moved(x, order)
    shape = (*value.shape[:-1], weight.shape[0])
    inputs = [value, weight, bias] if bias is not None else [value, weight]
    made = graph.add("FULLY_CONNECTED", inputs, shape, node, keepNumDims=rank != 2)
    return Placed(made, order)


def _multiplied(graph: Graph, left: Placed, right: Placed, shape: tuple[int, ...], like: Any) -> Value:
    """Add BATCH_MATMUL in the program's order of axes. An operand that is transposed in memory is not moved."""
    rank = len(left.order)
    swapped = (*range(rank - 2), rank - 1, rank - 2)
    lie_swapped = [_lies(each, swapped) for each in (left, right)]
    pairs = zip((left, right), lie_swapped, strict=True)
    values = [graph.moves.moved(each, swapped if turned else plain(rank)) for each, turned in pairs]
    return graph.add("BATCH_MATMUL", values, shape, like, adjX=lie_swapped[0], adjY=lie_swapped[1])


def _lies(x: Placed, swapped: Order) -> bool:
    """Return whether the last two axes are swapped in memory, so that the program's order would need a transpose."""
    positions = [axis for axis in x.order if x.shape[axis] != 1]
    wide = [axis for axis in swapped[-2:] if x.shape[axis] != 1]
    return len(wide) == 2 and positions.index(wide[0]) < positions.index(wide[1])


def _last(order: Order, axis: int) -> Order:
    return (*(each for each in order if each != axis), axis)


LOWERINGS: dict[str, Lowering] = {
    **dict.fromkeys(("matmul", "bmm", "mm"), _matmul),
    **dict.fromkeys(("softmax", "_softmax"), _softmax),
    "linear": _linear,
    "addmm": _addmm,
    "scaled_dot_product_attention": _attention,
    "layer_norm": _layer_norm,
    "batch_norm": _batch_norm,
}
