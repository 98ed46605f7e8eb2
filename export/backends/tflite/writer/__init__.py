"""Write a program as a TFLite model, in fp32 or int8. Needs the schema of the LiteRT runtime, and no converter.

Call ``emit(prepare(program))``; for int8, ``emit(prepared, ranges)``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from hnas.export.backends.tflite.writer import (
    dense,
    elementwise,
    indexing,
    logic,
    reductions,
    shapes,
    spatial,
    volumes,
)
from hnas.export.backends.tflite.writer.decomposition import ORIGIN, decompose
from hnas.export.backends.tflite.writer.int8 import quantise_operators
from hnas.export.backends.tflite.writer.layout import NHWC, Placed, plain
from hnas.export.backends.tflite.writer.lowering import (
    Graph,
    Lowering,
    Range,
    Unsupported,
    operator_name,
    read_constant,
)
from hnas.export.backends.tflite.writer.model import Model, Operator, Value, constant_tensor, pack_model
from hnas.export.backends.tflite.writer.rewrites import simplify
from hnas.export.graph.marks import FLOAT
from hnas.export.graph.nodes import aten, bound, constant_value, edit, shape_of
from hnas.export.graph.program import Program

__all__ = ["Unsupported", "emit", "lower", "pack_model", "prepare"]

LOWERINGS: Mapping[str, Lowering] = {
    **spatial.LOWERINGS,
    **elementwise.LOWERINGS,
    **shapes.LOWERINGS,
    **dense.LOWERINGS,
    **reductions.LOWERINGS,
    **indexing.LOWERINGS,
    **logic.LOWERINGS,
    **volumes.LOWERINGS,
}
_TYPES = (torch.float32, torch.int64, torch.int32, torch.bool)


def emit(program: Program, ranges: Mapping[str, Range] | None = None, *, leave: frozenset[str] = frozenset()) -> bytes:
    """Return the bytes of the model of a program from ``prepare``.

    4-D inputs are channels last; outputs have the program's layout.

    ranges: the range of every activation, by the name of its node; None for fp32. With ranges, the model computes in
        int8 where XNNPACK can. Its inputs and outputs stay in float.
    leave: operators that stay in float, by their names in the schema. Nodes marked as float stay in float too.

    Raises:
        Unsupported: the writer lacks an operator; the message names it.
    """
    model = lower(program, ranges)
    if ranges is not None:
        quantise_operators(model, leave)
    return pack_model(model)


def prepare(program: Program) -> Program:
    """Return the program in terms of operators that ``lower`` has.

    1. An operator that the writer lacks, or a use of one: decomposed into others, if that is possible.
    2. The weight and bias of each layer norm: operators of their own. They can be folded into the layer that follows.

    Calibrate the returned program, so that each value in it has its own range.
    """

    def rewrite(module: torch.fx.GraphModule) -> int:
        found = [node for node in module.graph.nodes if operator_name(node) == "layer_norm"]
        return sum(_take_out(module, node) for node in found)

    return edit(decompose(program, LOWERINGS), "separate_layer_norm", rewrite)


def _take_out(module: torch.fx.GraphModule, node: torch.fx.Node) -> bool:
    given = bound(node)
    parts = [(aten.mul.Tensor, given["weight"]), (aten.add.Tensor, given["bias"])]
    last, readers = node, list(node.users)
    for target, part in parts:
        if part is None:
            continue
        with module.graph.inserting_after(last):
            last = module.graph.call_function(target, (last, part))
        last.meta["val"] = node.meta["val"]
    if last is node:
        return False
    for reader in readers:
        reader.replace_input_with(node, last)
    node.args, node.kwargs = (given["input"], given["normalized_shape"], None, None, given["eps"]), {}
    return True


def lower(program: Program, ranges: Mapping[str, Range] | None = None) -> Model:
    """Return the program as a float model of TFLite operators. Raise Unsupported if the writer lacks an operator."""
    graph = Graph(program, ranges or {})
    for node in program.module.graph.nodes:
        if node.op == "placeholder":
            graph.values[node] = _input(graph, node)
        elif node.op == "get_attr":
            graph.values[node] = read_constant(constant_value(program.module, node))
        elif node.op == "call_function":
            known = len(graph.model.operators)
            graph.values[node] = graph.fold(node) or _lowered(graph, node)
            for operator in graph.model.operators[known:]:
                operator.kept = bool(node.meta.get(FLOAT))
        elif node.op == "output":
            results = node.args[0] if isinstance(node.args[0], tuple | list) else (node.args[0],)
            graph.model.outputs = [_output(graph, result) for result in results]
    simplify(graph.model)
    return graph.model


def _lowered(graph: Graph, node: torch.fx.Node) -> Placed | list[Placed]:
    """Lower a call. The error of a part of a decomposed operator names that operator too."""
    try:
        return _written(graph, node)
    except Unsupported as error:
        origin = node.meta.get(ORIGIN)
        raise Unsupported(f"{origin} (by {error})" if origin else str(error)) from None


def _written(graph: Graph, node: torch.fx.Node) -> Placed | list[Placed]:
    name = operator_name(node)
    if name not in LOWERINGS:
        raise Unsupported(name)
    values = node.meta["val"] if isinstance(node.meta["val"], tuple | list) else [node.meta["val"]]
    for value in values:
        if value is None:
            continue
        if not isinstance(value, torch.Tensor):
            raise Unsupported(f"{name} of numbers that depend on values")
        if value.dtype not in _TYPES or 0 in value.shape:
            raise Unsupported(f"{name} in {str(value.dtype).removeprefix('torch.')}{list(value.shape)}")
    return LOWERINGS[name](graph, node)


def _input(graph: Graph, node: torch.fx.Node) -> Placed:
    value = node.meta["val"]
    dtype, shape = str(value.dtype).removeprefix("torch."), shape_of(node)
    if dtype not in ("float32", "int32", "int64", "bool") or 0 in shape:
        raise Unsupported(f"an input in {dtype}{list(shape)}")
    order = NHWC if len(shape) == 4 else plain(len(shape))
    made = Value(tuple(shape[axis] for axis in order), dtype, range=graph.range_of(node))
    graph.model.inputs.append(made)
    return Placed(made, order)


def _output(graph: Graph, node: torch.fx.Node) -> Value:
    """Return the tensor of a result in the program's layout.

    A constant, an input, or a result that occurs twice is copied.
    """
    value = graph.at(node, plain(len(shape_of(node))))
    if value.data is not None or value in graph.model.inputs or value in graph.model.outputs:
        kind = "LOGICAL_OR" if value.dtype == "bool" else "ADD"
        zero = constant_tensor(np.zeros(1, value.dtype))
        made = Value(value.shape, value.dtype, range=value.range)
        graph.model.operators.append(Operator(kind, [value, zero], [made]))
        return made
    return value
