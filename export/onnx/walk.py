"""Iterate over the graphs, nodes and constants of a parsed ONNX model, including those in branches and loops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})  # operators with weights


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and the graphs inside its nodes: branches and bodies of loops."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                yield from graphs(inner)


def reads(node: onnx.NodeProto) -> set[str]:
    """Return the names of the values that a node reads, also in its branches and loops."""
    found = set(node.input)
    for attribute in node.attribute:
        for body in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
            for graph in graphs(body):
                found |= {value.name for value in graph.output}
                found |= {name for inner in graph.node for name in inner.input}
    return found


def nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return every node of a model: those of all its graphs, then those of its functions."""
    found = [node for graph in graphs(model.graph) for node in graph.node]
    return found + [node for function in model.functions for node in function.node]


def constants(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield every constant of a graph and of the graphs inside it."""
    for each in graphs(graph):
        sparse = [*each.sparse_initializer]
        yield from each.initializer
        for node in each.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                if attribute.HasField("sparse_tensor"):
                    sparse.append(attribute.sparse_tensor)
                yield from attribute.tensors
                sparse += attribute.sparse_tensors
        for part in sparse:
            yield part.values
            yield part.indices


def shown(name: str) -> str:
    """Return a name from a file for use in a message: printable, and at most 60 characters."""
    plain = name if name.isprintable() else ascii(name)
    return plain if len(plain) <= 60 else plain[:57] + "..."
