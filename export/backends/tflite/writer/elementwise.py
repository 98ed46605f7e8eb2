"""Lower arithmetic and activations on each element, in any order of axes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import fx

from hnas.export.backends.tflite.writer.layout import Placed, plain
from hnas.export.backends.tflite.writer.lowering import (
    Graph,
    Lowering,
    Unsupported,
    arguments,
    operator_name,
    type_name,
)
from hnas.export.backends.tflite.writer.model import Value, constant_tensor
from hnas.export.graph.nodes import shape_of

_BINARY = {"add": "ADD", "sub": "SUB", "mul": "MUL", "div": "DIV", "maximum": "MAXIMUM", "minimum": "MINIMUM"}
_BINARY |= {"remainder": "FLOOR_MOD"}
_UNARY = {"relu": "RELU", "relu6": "RELU6", "sigmoid": "LOGISTIC", "tanh": "TANH", "hardswish": "HARD_SWISH"}
_UNARY |= {"sqrt": "SQRT", "rsqrt": "RSQRT", "exp": "EXP", "log": "LOG", "neg": "NEG", "abs": "ABS", "square": "SQUARE"}
_UNARY |= {"sin": "SIN", "cos": "COS", "floor": "FLOOR", "ceil": "CEIL", "sign": "SIGN", "round": "ROUND"}
_CLAMPS: dict[Any, str] = {(0, None): "RELU", (0, 6): "RELU6", (-1, 1): "RELU_N1_TO_1"}
_POWERS = {2.0: "SQUARE", 0.5: "SQRT", -0.5: "RSQRT"}


def _binary(graph: Graph, node: fx.Node) -> Placed:
    """Lower arithmetic on two values with broadcasting. Division by a constant becomes a product."""
    given, name = arguments(node), operator_name(node)
    left, right = given["self"], given["other"]
    if given.get("rounding_mode") is not None:
        raise Unsupported("div that rounds")
    if name in ("add", "sub") and _is_zero(graph, right, node, left):
        return graph.placed(left)
    if name == "add" and _is_zero(graph, left, node, right):
        return graph.placed(right)
    operands, order = graph.together(node, [left, right])
    if given.get("alpha", 1) != 1:
        factor = constant_tensor(np.array([given["alpha"]], operands[1].dtype))
        operands[1] = _combine(graph, "MUL", operands[1], factor)
    if name == "div" and operands[1].data is not None:
        name, operands[1] = "mul", constant_tensor((1.0 / operands[1].data.astype(np.float64)).astype(np.float32))
    shape = tuple(shape_of(node)[axis] for axis in order)
    return Placed(graph.add(_BINARY[name], operands, shape, node), order)


def _reversed_subtraction(graph: Graph, node: fx.Node) -> Placed:
    """Lower rsub: other - self."""
    given = arguments(node)
    if given["alpha"] != 1:
        raise Unsupported("rsub with alpha")
    operands, order = graph.together(node, [given["other"], given["self"]])
    return Placed(graph.add("SUB", operands, tuple(shape_of(node)[axis] for axis in order), node), order)


def _arc_tangent(graph: Graph, node: fx.Node) -> Placed:
    """Lower atan2. The kernel does not broadcast, so both operands get the shape of the result."""
    operands, order = graph.together(node, node.args)
    shape = tuple(shape_of(node)[axis] for axis in order)
    return Placed(graph.add("ATAN2", [_filled(graph, each, shape) for each in operands], shape, node), order)


def _filled(graph: Graph, value: Value, shape: tuple[int, ...]) -> Value:
    if value.data is not None:
        return constant_tensor(np.broadcast_to(value.data, shape))
    return value if value.shape == shape else graph.add("BROADCAST_TO", [value, constant_tensor(shape)], shape, value)


def _whole_quotient(graph: Graph, node: fx.Node) -> Placed:
    """Lower floor_divide of whole numbers. The kernel has 32 bits."""
    operands, order = graph.together(node, node.args, torch.int32)
    shape = tuple(shape_of(node)[axis] for axis in order)
    made = graph.add("FLOOR_DIV", operands, shape, dtype="int32")
    return Placed(graph.cast(made, type_name(node.meta["val"].dtype), node), order)


def _unary(graph: Graph, node: fx.Node) -> Placed:
    """Lower an operator with one input that TFLite also has."""
    return _like(graph, node, _UNARY[operator_name(node)])


def _gelu(graph: Graph, node: fx.Node) -> Placed:
    """Lower gelu, with the error function or with tanh."""
    return _like(graph, node, "GELU", approximate=arguments(node)["approximate"] == "tanh")


def _elu(graph: Graph, node: fx.Node) -> Placed:
    """Lower elu without factors; the writer's formulas have the others."""
    return _like(graph, node, "ELU")


def _prelu(graph: Graph, node: fx.Node) -> Placed:
    """Lower prelu with constant slopes, one or one for each channel."""
    x, slopes = graph.placed(node.args[0]), graph.constant(node.args[1], "prelu with slopes")  # type: ignore[arg-type]
    rank = len(x.order)
    by_channel = np.broadcast_to(slopes.reshape(-1), x.shape[1] if rank > 1 else 1)
    shape = (1, -1, *[1] * (rank - 2)) if rank > 1 else (-1,)
    operand = graph.spread(Placed(constant_tensor(by_channel.reshape(shape)), plain(rank)), rank, x.order)
    return Placed(graph.add("PRELU", [x.value, operand], x.value.shape, node), x.order)


def _leaky_relu(graph: Graph, node: fx.Node) -> Placed:
    """Lower leaky_relu with any slope."""
    return _like(graph, node, "LEAKY_RELU", alpha=float(arguments(node)["negative_slope"]))


def _silu(graph: Graph, node: fx.Node) -> Placed:
    """Lower silu to x * sigmoid(x)."""
    x = graph.placed(node.args[0])
    gate = graph.add("LOGISTIC", [x.value], x.value.shape, (0.0, 1.0))
    return Placed(graph.add("MUL", [x.value, gate], x.value.shape, node), x.order)


def _hard_sigmoid(graph: Graph, node: fx.Node) -> Placed:
    """Lower hardsigmoid to relu6(x + 3) / 6, because TFLite has no operator for it."""
    x = graph.placed(node.args[0])
    three, sixth = (constant_tensor(np.array([number], np.float32)) for number in (3.0, 1 / 6))
    raised = graph.add("ADD", [x.value, three], x.value.shape, (0.0, 6.0), fusedActivationFunction=3)
    return Placed(graph.add("MUL", [raised, sixth], x.value.shape, node), x.order)


def _clamp(graph: Graph, node: fx.Node) -> Placed:
    """Lower clamp, clamp_min, clamp_max and hardtanh with constant bounds."""
    given = arguments(node)
    low, high = given.get("min", given.get("min_val")), given.get("max", given.get("max_val"))
    if isinstance(low, fx.Node) or isinstance(high, fx.Node):
        raise Unsupported("clamp with bounds from the graph")
    x = graph.placed(given["self"])
    value = x.value
    if (low, high) in _CLAMPS and value.dtype == "float32":
        return _like(graph, node, _CLAMPS[low, high])
    for kind, limit in (("MAXIMUM", low), ("MINIMUM", high)):
        if limit is not None and math.isfinite(limit):
            value = graph.add(kind, [value, constant_tensor(np.array([limit], value.dtype))], value.shape, node)
    return Placed(value, x.order)


def _reciprocal(graph: Graph, node: fx.Node) -> Placed:
    """Lower reciprocal to 1 / x."""
    x = graph.placed(node.args[0])
    return Placed(graph.add("DIV", [constant_tensor(np.ones(1, np.float32)), x.value], x.value.shape, node), x.order)


def _power(graph: Graph, node: fx.Node) -> Placed:
    """Lower pow with a constant exponent. Square, root and inverse root have their own operators."""
    given = arguments(node)
    exponent = given["exponent"]
    if isinstance(exponent, fx.Node) or not isinstance(given["self"], fx.Node):
        operands, order = graph.together(node, [given["self"], exponent])
        return Placed(graph.add("POW", operands, tuple(shape_of(node)[axis] for axis in order), node), order)
    if float(exponent) in _POWERS:
        return _like(graph, node, _POWERS[float(exponent)])
    x = graph.placed(node.args[0])
    if exponent == 3:
        square = graph.add("SQUARE", [x.value], x.value.shape)
        return Placed(graph.add("MUL", [square, x.value], x.value.shape, node), x.order)
    inputs = [x.value, constant_tensor(np.array(exponent, x.value.dtype))]
    return Placed(graph.add("POW", inputs, x.value.shape, node), x.order)


def _same(graph: Graph, node: fx.Node) -> Placed:
    """Return the input: the operator has no effect in eval mode."""
    return graph.placed(node.args[0])


def _like(graph: Graph, node: fx.Node, kind: str, **options: Any) -> Placed:
    x = graph.placed(node.args[0])
    return Placed(graph.add(kind, [x.value], x.value.shape, node, **options), x.order)


def _combine(graph: Graph, kind: str, left: Value, right: Value) -> Value:
    if left.data is not None and right.data is not None:
        return constant_tensor(left.data * right.data)
    return graph.add(kind, [left, right], left.shape)


def _is_zero(graph: Graph, operand: Any, node: fx.Node, other: Any) -> bool:
    """Return whether ``operand`` is a constant zero, so that a sum with it equals ``other``."""
    data = graph.placed(operand).value.data
    return data is not None and isinstance(other, fx.Node) and shape_of(other) == shape_of(node) and not data.any()


LOWERINGS: dict[str, Lowering] = {
    **dict.fromkeys(_BINARY, _binary),
    **dict.fromkeys(_UNARY, _unary),
    **dict.fromkeys(("clamp", "clamp_min", "clamp_max", "hardtanh"), _clamp),
    **dict.fromkeys(("dropout", "clone", "contiguous", "alias", "detach"), _same),
    "atan2": _arc_tangent,
    "floor_divide": _whole_quotient,
    "rsub": _reversed_subtraction,
    "gelu": _gelu,
    "elu": _elu,
    "prelu": _prelu,
    "leaky_relu": _leaky_relu,
    "silu": _silu,
    "hardsigmoid": _hard_sigmoid,
    "pow": _power,
    "reciprocal": _reciprocal,
}
