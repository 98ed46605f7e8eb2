"""The kernels of an ONNX file as the roofline wants them: counted from its graph, where there is no torch to trace."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from hnas.cost.roofline import Kernel

if TYPE_CHECKING:
    import onnx

_RECURRENT = ("LSTM", "GRU", "RNN")
# A kernel of its own without arithmetic that is counted: it reads and writes.
MOVES = ("Softmax", "LogSoftmax", "ReduceMean", "GlobalAveragePool", "LayerNormalization", "InstanceNormalization")


def kernels(path: Path) -> list[Kernel]:
    """The kernels of the file in order, as `roofline.trace` counts them; a size that the graph does not tell is 0."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True).graph
    shapes = {value.name: _sizes(value) for value in (*graph.input, *graph.value_info, *graph.output)}
    shapes |= {weight.name: tuple(weight.dims) for weight in graph.initializer}
    held = [node for node in graph.node if node.op_type == "Constant"]
    shapes |= {node.output[0]: tuple(a.t.dims) for node in held for a in node.attribute if a.HasField("t")}
    found = []
    for node in graph.node:
        flops = _flops(node, shapes)
        if flops or node.op_type in MOVES:
            moved = [shapes[name] for name in (*node.input, *node.output) if name in shapes]
            found.append(Kernel(node.op_type, flops, sum(map(prod, moved))))
    return found


def _sizes(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(size.dim_value for size in value.type.tensor_type.shape.dim)


def _flops(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Twice the multiply-accumulates of a convolution, a matrix product or a recurrent layer; 0 for anything else."""
    known = [shapes.get(name, ()) for name in node.input]
    if len(known) < 2 or not known[0] or not known[1]:
        return 0
    first, second, out = known[0], known[1], shapes.get(node.output[0], ())
    if node.op_type == "Conv":
        return 2 * prod(out) * prod(second[1:])
    if node.op_type == "ConvTranspose":
        return 2 * prod(first) * prod(second[1:])
    if node.op_type in ("Gemm", "MatMul"):
        turned = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        return 2 * prod(out) * first[0 if turned else -1]
    if node.op_type in _RECURRENT:  # for every step and sample, each weight once
        return 2 * prod(first[:2]) * (prod(second) + prod(known[2]))
    return 0
