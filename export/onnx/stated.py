"""Read from a typed ONNX file which nodes compute in fp32: ``stated_types(path, plan)``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hnas.export.device.engine_types import NO_HALF
from hnas.export.onnx.casts import HALF, SINGLE
from hnas.export.onnx.halving import HalfPlan
from hnas.export.onnx.walk import LAYERS, graphs

if TYPE_CHECKING:
    import onnx

    from hnas.export.device.records import JSON

_MOVED = ("Cast", "CastLike", "Constant", "Identity", "QuantizeLinear", "DequantizeLinear")


def stated_types(path: Path, plan: HalfPlan) -> dict[str, JSON]:
    """Return the note on the types of the file at ``path``: its nodes in fp32 with the reasons, and numbers of layers.

    Casts and quantisers are no layers that compute. The nodes of branches and loops count.
    """
    import onnx

    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    single = {node.name: plan.kept.get(node.name, NO_HALF) for part in graphs(graph) for node in _in_single(part)}
    layers = [node.name for part in graphs(graph) for node in part.node if node.op_type in LAYERS]
    kept: JSON = dict(single)
    return {
        **plan.to_json(),
        "fp32": kept,
        "layers": len(layers),
        "kept_layers": sum(name in single for name in layers),
    }


def _in_single(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the nodes of a graph, without those of its branches, that read or make fp32 and no fp16."""
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    types |= {value.name: value.data_type for value in graph.initializer}
    found = []
    for node in graph.node:
        ends = {types.get(name) for name in (*node.input, *node.output)}
        if SINGLE in ends and HALF not in ends and node.op_type not in _MOVED:
            found.append(node)
    return found
