"""Kernels of an ONNX file for the roofline model, counted from its graph without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from hnas.cost.kernels import Kernel, kind_of_convolution

if TYPE_CHECKING:
    import onnx

_RECURRENT = ("LSTM", "GRU", "RNN")
# Kernels whose arithmetic is not counted; they read and write memory.
_KINDS = {
    **dict.fromkeys(("Softmax", "LogSoftmax", "ReduceMean"), "reduction"),
    **dict.fromkeys(("GlobalAveragePool", "AveragePool", "MaxPool"), "reduction"),
    **dict.fromkeys(("LayerNormalization", "InstanceNormalization", "GroupNormalization"), "reduction"),
    **dict.fromkeys(("Concat", "Pad", "Resize"), "reformat"),
    **dict.fromkeys(("Sigmoid", "HardSigmoid", "HardSwish", "Gelu", "Mish", "Tanh", "Softplus", "Elu"), "elementwise"),
    **dict.fromkeys(("Mul", "Div", "Sub", "Pow", "Exp", "Erf", "Sqrt", "Reciprocal"), "elementwise"),
}
_FUSED = ("Add", "Relu", "Clip", "LeakyRelu")


def kernels(path: Path, inputs: Mapping[str, Sequence[int]] | None = None) -> list[Kernel]:
    """Return the kernels of the file in order, as `roofline.trace` counts them. Unknown sizes count as 0.

    inputs: shapes of inputs by name, for symbolic sizes.
    """
    import onnx

    model = onnx.load(path)
    _fix_inputs(model, inputs)
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    held = [node for node in graph.node if node.op_type == "Constant"]
    shapes = _shapes(graph, held)
    constant = {weight.name for weight in graph.initializer} | {node.output[0] for node in held}
    found = []
    passes: set[str] = set()  # results of element-wise passes over memory
    for node in graph.node:
        flops = _flops(node, shapes)
        kind = _kind(node, shapes, constant) if flops else _KINDS.get(node.op_type)
        if kind == "elementwise" or node.op_type in _FUSED:
            continued = not passes.isdisjoint(node.input)
            if continued or kind:
                passes |= set(node.output)
            kind = None if continued else kind  # one pass computes a chain
        if kind is not None:
            moved = sum(prod(shapes.get(name, (0,))) for name in (*node.input, *node.output))
            found.append(Kernel(node.op_type, flops, moved, kind))
    return found


def _fix_inputs(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None) -> None:
    if shapes is None:
        return
    for value in model.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False):
            dim.dim_value = size


def _shapes(graph: onnx.GraphProto, held: Sequence[onnx.NodeProto]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that has a known one. ``held``: the nodes of type Constant."""
    shapes = {value.name: _sizes(value) for value in (*graph.input, *graph.value_info, *graph.output)}
    shapes |= {weight.name: tuple(weight.dims) for weight in graph.initializer}
    return shapes | {node.output[0]: tuple(a.t.dims) for node in held for a in node.attribute if a.HasField("t")}


def _sizes(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(size.dim_value for size in value.type.tensor_type.shape.dim)


def _kind(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]], constant: set[str]) -> str:
    """Return the kind of a kernel whose arithmetic is counted."""
    if node.op_type in _RECURRENT:
        return "recurrent"
    if node.op_type == "Conv":
        groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        return kind_of_convolution(shapes[node.input[1]], groups)
    if node.op_type == "ConvTranspose":
        return "dense"
    return "pointwise" if constant.intersection(node.input) else "attention"


def _flops(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return twice the multiply-accumulates of a convolution, matrix product or recurrent layer; else 0."""
    known = [shapes.get(name, ()) for name in node.input]
    if len(known) < 2 or not known[0] or not known[1]:
        return 0
    first, second, out = known[0], known[1], shapes.get(node.output[0], ())
    if node.op_type == "Conv":
        return 2 * prod(out) * prod(second[1:])
    if node.op_type == "ConvTranspose":
        return 2 * prod(first) * prod(second[1:])
    if node.op_type in ("Gemm", "MatMul"):
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        return 2 * prod(out) * first[0 if transposed else -1]
    if node.op_type in _RECURRENT:  # each weight once for every step and sample
        return 2 * prod(first[:2]) * (prod(second) + prod(known[2]))
    return 0
