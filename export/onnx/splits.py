"""Replace Split, which ONNX's converter cannot bring below opset 18: ``split_by_slices(model)``."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx


def split_by_slices(model: onnx.ModelProto) -> None:
    """Replace each Split of the main graph by one Slice for each output, in place.

    1. Sizes are constants, or their number is given and the split axis has a fixed size: replaced.
    2. Other sizes: unchanged.
    """
    import onnx

    graph = model.graph
    known = {value.name: onnx.numpy_helper.to_array(value) for value in graph.initializer}
    shapes = _shapes(model)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        sizes = _sizes(node, known, shapes) if node.op_type == "Split" else None
        nodes += [node] if sizes is None else _slices(graph, node, sizes)
    del graph.node[:]
    graph.node.extend(nodes)


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Return the shape of each value; 0 for an open size."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    return {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}


def _sizes(node: onnx.NodeProto, known: dict[str, np.ndarray], shapes: dict[str, list[int]]) -> list[int] | None:
    """Return the sizes of the outputs, or None in case 2. Equal parts are as large as the last one or larger."""
    if len(node.input) > 1 and node.input[1]:
        return [int(size) for size in known[node.input[1]]] if node.input[1] in known else None
    shape = shapes.get(node.input[0], [])
    axis = _axis(node)
    whole = shape[axis] if -len(shape) <= axis < len(shape) else 0
    part = -(-whole // len(node.output))
    return [min(part, whole - part * index) for index in range(len(node.output))] if whole else None


def _slices(graph: onnx.GraphProto, node: onnx.NodeProto, sizes: list[int]) -> list[onnx.NodeProto]:
    from onnx import helper, numpy_helper

    ends = list(accumulate(sizes))
    found = []
    for output, start, end in zip(node.output, [0, *ends], ends, strict=False):
        names = [f"{output}_{part}" for part in ("start", "end", "axis")]
        for name, value in zip(names, (start, end, _axis(node)), strict=True):
            graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name))
        found.append(helper.make_node("Slice", [node.input[0], *names], [output], name=f"{node.name}/{output}"))
    return found


def _axis(node: onnx.NodeProto) -> int:
    return next((int(each.i) for each in node.attribute if each.name == "axis"), 0)
