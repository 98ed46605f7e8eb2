"""Find the nodes of a converted file that compute given nodes of a program. Converters keep order, but not names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from hnas.export.device.errors import ExportError

if TYPE_CHECKING:
    import onnx
    from torch import fx

    from hnas.export.graph.program import Program

# By ATen operator: the name that OpenVINO's front end gives to the operator that does the computation.
_OPENVINO = {
    "linear": "MatMul",
    "addmm": "MatMul",
    "matmul": "MatMul",
    "mm": "MatMul",
    "bmm": "MatMul",
    "add": "Add",
    "sub": "Subtract",
    "mul": "Multiply",
    "div": "Divide",
    "mean": "ReduceMean",
    "pad": "Pad",
    "constant_pad_nd": "Pad",
    "avg_pool2d": "AvgPool",
    "upsample_nearest2d": "Interpolate",
    "upsample_bilinear2d": "Interpolate",
    "layer_norm": "MVN",
    "instance_norm": "MVN",
    "group_norm": "GroupNormalization",
    "scaled_dot_product_attention": "ScaledDotProductAttention",
}


def onnx_values(program: Program, graph: onnx.GraphProto) -> dict[str, str]:
    """Map the name of each value of the file to that of a value of the program; empty if they do not match one to one.

    torch names a value after its node, but numbers the names differently. Additional values are named val_1, val_2.
    """
    import torch

    ours = [
        node.name
        for node in program.module.graph.nodes
        if node.op == "call_function" and isinstance(node.meta.get("val"), torch.Tensor)
    ]
    theirs = [name for node in graph.node for name in node.output if not re.fullmatch(r"val_\d+", name)]
    if len(ours) != len(theirs) or len(set(theirs)) != len(theirs):
        return {}
    inputs = [node for node in program.module.graph.nodes if node.op == "placeholder"]
    named = {value.name: node.name for value, node in zip(graph.input, inputs, strict=True)}
    return {**named, **dict(zip(theirs, ours, strict=True))}


def onnx_nodes(program: Program, graph: onnx.GraphProto, names: Collection[str]) -> set[str]:
    """Return the names of the file's nodes that compute the values ``names`` of the program.

    Raises:
        ExportError: the values of the file do not match those of the program.
    """
    values = onnx_values(program, graph)
    if names and not values:
        raise ExportError(
            "the nodes of the ONNX file do not match the program; its blocks cannot be kept in float separately"
        )
    found: set[str] = set()
    parts: list[str] = []
    for node in graph.node:  # a node without a value of the program is a part of the next node that has one
        parts.append(node.name)
        named = [values[name] for name in node.output if name in values]
        if named:
            found.update(parts if set(named) & set(names) else ())
            parts = []
    return found


def openvino_nodes(program: Program, known: Iterable[str], names: Collection[str]) -> list[str]:
    """Return the operators among ``known`` that compute the values ``names`` of the program.

    OpenVINO names the k-th operator of a kind aten::linear/MatMul_k, and the first one without a number.

    Raises:
        ExportError: a layer with weights is missing under its expected name.
    """
    there, counts, found = set(known), dict[str, int](), []
    for node in program.module.graph.nodes:
        stem = _stem(node)
        if stem is None:
            continue
        index = counts[stem] = counts.get(stem, -1) + 1
        name = f"{stem}_{index}" if index else stem
        if node.name not in names:
            continue
        if name in there:
            found.append(name)
        elif "convolution" in stem or stem.endswith("linear/MatMul"):
            raise ExportError(f"the OpenVINO model has no {name} for {node.name}; it cannot stay in float separately")
    return found


def _stem(node: fx.Node) -> str | None:
    """Return the name of the first operator of this kind in an OpenVINO model; None for a node without an operator."""
    if node.op != "call_function" or not str(node.target).startswith("aten."):
        return None
    kind = str(node.target).split(".")[1]
    if kind.startswith("conv"):
        from hnas.export.graph.nodes import bound

        grouped = "Group" if bound(node)["groups"] > 1 else ""
        back = "BackpropData" if "transpose" in kind else ""
        return f"aten::_convolution/{grouped}Convolution{back}"
    return f"aten::{kind}/{_OPENVINO[kind]}" if kind in _OPENVINO else None
