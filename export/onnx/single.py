"""Compute an ONNX file in float32, whatever floats it has: ``in_single(file)``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from hnas.export.onnx.walk import constants, graphs

if TYPE_CHECKING:
    import onnx

    from hnas.export.onnx.checks import OnnxFile

_OTHERS = {10: "float16", 11: "float64", 16: "bfloat16"}  # of onnx.TensorProto
_SINGLE = 1
# Attributes that state a type. LayerNormalization and RMSNormalization call it stash_type.
_TYPES = frozenset({"to", "dtype", "output_datatype", "stash_type", "softmax_precision"})


def in_single(file: OnnxFile) -> tuple[str, ...]:
    """Convert constants, values and casts of other floats to float32, in place. Return the names of these types.

    A float64 number beyond the range of float32 becomes the largest float32.
    """
    found = {kind for graph in graphs(file.model.graph) for kind in _convert_graph(graph)}
    found |= {kind for tensor in constants(file.model.graph) for kind in _convert_constant(tensor)}
    names = tuple(sorted(_OTHERS[kind] for kind in found))
    file.changes += [f"its {name} parts are computed in float32" for name in names]
    return names


def _convert_graph(graph: onnx.GraphProto) -> Iterator[int]:
    """Convert the types that a graph states for its values and in its nodes. Yield each other float type once more."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type.elem_type
        if kind in _OTHERS:
            yield kind
            value.type.tensor_type.elem_type = _SINGLE
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in _TYPES and attribute.i in _OTHERS:
                yield attribute.i
                attribute.i = _SINGLE


def _convert_constant(tensor: onnx.TensorProto) -> Iterator[int]:
    import onnx

    if tensor.data_type not in _OTHERS:
        return
    yield tensor.data_type
    values = onnx.numpy_helper.to_array(tensor).astype(np.float64)
    limit = float(np.finfo(np.float32).max)
    values = np.where(np.isfinite(values), values.clip(-limit, limit), values)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32).reshape(values.shape), tensor.name))
