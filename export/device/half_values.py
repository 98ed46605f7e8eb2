"""Let a CPU see what fp16 does to the values of an ONNX file: ``with_rounding(path)``.

ONNX Runtime on the CPU computes neighbouring fp16 nodes in fp32 and skips the rounding between them, so it does not see
a value that overflows fp16.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

SINGLE, HALF = 1, 10  # TensorProto.FLOAT and FLOAT16


def with_rounding(path: Path) -> bytes:
    """Return the model in ``path`` with fp32 arithmetic, in which each value that the file states as fp16 is rounded.

    1. A constant in fp16: the same numbers in fp32.
    2. A value in fp16: it keeps its name and type, and its readers read a cast of it to fp32.
    3. A node that makes it computes in fp32, and its output is cast to fp16. A Cast to fp16 stays as it is.

    Run the model without graph optimisations. Example: ``InferenceSession(with_rounding(artifact.model), options)``.
    """
    import onnx

    model = onnx.load(str(path))
    graph = model.graph
    known = [*onnx.shape_inference.infer_shapes(model).graph.value_info, *graph.input, *graph.output]
    halves = {value.name for value in known if value.type.tensor_type.elem_type == HALF}
    taken = {name for node in _nodes(graph) for name in (*node.input, *node.output)} | {each.name for each in known}
    for constant in graph.initializer:  # case 1
        _widen(constant)
    halves -= {constant.name for constant in graph.initializer}
    wide = {name: _fresh(f"{name}_wide", taken) for name in sorted(halves)}
    nodes = [_cast(value.name, wide[value.name], SINGLE) for value in graph.input if value.name in wide]
    for node in graph.node:
        nodes += _rounded(node, wide, taken)
    del graph.node[:]
    del graph.value_info[:]
    graph.node.extend(nodes)
    return bytes(model.SerializeToString())


def _rounded(node: onnx.NodeProto, wide: Mapping[str, str], taken: set[str]) -> Iterator[onnx.NodeProto]:
    """Yield a node that computes in fp32, and the casts of what it makes."""
    stays = node.op_type == "Cast"
    for each in _nodes_of(node):  # case 2
        each.input[:] = [wide.get(name, name) for name in each.input]
    for attribute in () if stays else node.attribute:
        _widen(attribute.t)
    yield node
    for place, name in enumerate(node.output):
        if name not in wide:
            continue
        if not stays:  # case 3
            node.output[place] = _fresh(f"{name}_raw", taken)
            yield _cast(node.output[place], name, HALF)
        yield _cast(name, wide[name], SINGLE)


def _cast(source: str, target: str, kind: int) -> onnx.NodeProto:
    import onnx

    return onnx.helper.make_node("Cast", [source], [target], to=kind)


def _widen(constant: onnx.TensorProto) -> None:
    import onnx

    if constant.data_type == HALF:
        values: Any = onnx.numpy_helper.to_array(constant)
        constant.CopyFrom(onnx.numpy_helper.from_array(values.astype("float32"), constant.name))


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield from _nodes_of(node)


def _nodes_of(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """Yield a node, and the nodes of its branches or loops."""
    yield node
    for attribute in node.attribute:
        for body in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
            yield from _nodes(body)


def _fresh(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name
