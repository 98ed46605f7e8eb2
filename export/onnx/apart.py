"""Find the operators of an ONNX file that must stay in float for unlike parts: ``float_nodes(path, samples)``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from hnas.export.device.records import JSON
from hnas.export.int8.unlike import Array, Call, Edit, Kind, Unlike, find_unlike
from hnas.export.onnx.walk import LAYERS, graphs

if TYPE_CHECKING:
    import onnx

    from hnas.export.graph.samples import Sample, Samples

_SLICES = frozenset({"Slice", "Split", "Gather"})
_REPLACED = "kept_apart_input"


def float_nodes(path: Path, samples: Samples, *, at_ends: bool = True) -> tuple[set[str], list[JSON]]:
    """Return the names of the nodes to keep in float, and a record for each value with unlike parts.

    Values are those of `hnas.export.int8.unlike.find_unlike`; ``at_ends`` is its parameter. A node without a name is
    named by its first output.

    1. The operator that computes such a value, and those that read it: float.
    2. Near the outputs: also the operators before it, up to the last layers.
    """
    network = FileNetwork(path)
    found = find_unlike(network, samples, at_ends=at_ends)
    names = {network.called(node) for value in found for node in network.around(value)}
    return names, [value.to_json("float") for value in found]


class FileNetwork:
    """Present an ONNX file as a `hnas.export.int8.unlike.Network`. A graph with branches has no calls."""

    def __init__(self, path: Path) -> None:
        import onnx

        self._model = onnx.load(path)
        self._graph = self._model.graph
        flat = len([*graphs(self._graph)]) == 1
        self._nodes = [*self._graph.node] if flat else []
        self._inputs = {value.name: value for value in self._graph.input if flat}
        self._floating = self._find_floating()

    def _find_floating(self) -> set[str]:
        import onnx

        known = onnx.shape_inference.infer_shapes(self._model).graph
        typed = [*known.input, *known.output, *known.value_info]
        return {value.name for value in typed if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}

    @cached_property
    def calls(self) -> Mapping[str, Call]:
        """Return the call of each floating-point value that depends on an input."""
        found = {name: Call("input", ()) for name in self._inputs if name in self._floating}
        for node in self._nodes:
            sources = tuple(dict.fromkeys(name for name in node.input if name in found))
            for name in node.output:
                if name in self._floating and sources:
                    found[name] = _call(node, sources)
        return found

    @property
    def outputs(self) -> Sequence[str]:
        """Return the names of the outputs."""
        return [value.name for value in self._graph.output]

    def called(self, node: onnx.NodeProto) -> str:
        """Return the name of a node, or of its first output."""
        return str(node.name or node.output[0])

    def around(self, value: Unlike) -> list[onnx.NodeProto]:
        """Return the nodes of cases 1 and 2 of ``float_nodes``."""
        makers = {name: node for node in self._nodes for name in node.output}
        found = [node for node in self._nodes if value.name in node.input]
        left = [value.name]
        while left:
            node = makers.get(left.pop())
            if node is not None and node not in found:
                found.append(node)
                inputs = [name for name in node.input if name in makers and makers[name].op_type not in LAYERS]
                left += inputs if value.at_end and node.op_type not in LAYERS else []
        return found

    def observe(self, samples: Samples, names: Collection[str], see: Callable[[str, Array], None]) -> None:
        """Call ``see(name, value)`` for each named value and each sample."""
        given = [name for name in names if name in self._inputs]
        wanted = [name for name in names if name not in given]
        run = self._opened(wanted) if wanted else None
        for sample in samples:
            feed = self._feed(sample)
            for name in given:
                see(name, feed[name])
            for name, value in zip(wanted, run(feed) if run else [], strict=True):
                see(name, value)

    def replay(self, sample: Sample, edits: Sequence[tuple[str, Edit]]) -> list[tuple[Array, ...]]:
        """Return the outputs for ``sample``: first unedited, then with each edit of one named value."""
        names = list(dict.fromkeys(name for name, _ in edits if name not in self._inputs))
        feed = self._feed(sample)
        found = self._plain(names)(feed)
        exact = found[: len(self.outputs)]
        values = {**dict(zip(names, found[len(exact) :], strict=True)), **feed}
        answers = [tuple(exact)]
        for name, change in edits:
            changed = change(values[name])
            outputs = self._cut(name)({**feed, _REPLACED: changed})
            answers.append(
                tuple(changed if end == name else out for end, out in zip(self.outputs, outputs, strict=True))
            )
        return answers

    def _feed(self, sample: Sample) -> dict[str, Array]:
        return dict(zip((value.name for value in self._graph.input), sample, strict=True))

    @cached_property
    def _runs(self) -> dict[object, Callable[[Mapping[str, Array]], list[Array]]]:
        return {}

    def _plain(self, names: Sequence[str]) -> Callable[[Mapping[str, Array]], list[Array]]:
        key = tuple(names)
        if key not in self._runs:
            self._runs[key] = self._opened([*self.outputs, *names])
        return self._runs[key]

    def _cut(self, name: str) -> Callable[[Mapping[str, Array]], list[Array]]:
        """Return a function that runs the file with the value ``name`` given as another input."""
        if name not in self._runs:
            self._runs[name] = self._opened(self.outputs, replaced=name)
        return self._runs[name]

    def _opened(self, outputs: Sequence[str], replaced: str = "") -> Callable[[Mapping[str, Array]], list[Array]]:
        """Return a function that runs the file without optimisations."""
        import onnx
        import onnxruntime as ort

        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        known = {value.name for value in model.graph.output}
        kind = onnx.TensorProto.FLOAT
        extra = [onnx.helper.make_tensor_value_info(name, kind, None) for name in outputs if name not in known]
        model.graph.output.extend(extra)
        if replaced:
            model.graph.input.append(onnx.helper.make_tensor_value_info(_REPLACED, kind, None))
            for node in model.graph.node:
                node.input[:] = [_REPLACED if name == replaced else name for name in node.input]
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return lambda feed: session.run(list(outputs), dict(feed))


def _call(node: onnx.NodeProto, sources: tuple[str, ...]) -> Call:
    if node.op_type in LAYERS and len(sources) == 1:
        return Call("layer", sources, axis=None if node.op_type in ("Gemm", "MatMul") else 1)
    if node.op_type == "Concat":
        return Call("join", sources)
    kind: Kind = "part" if node.op_type in _SLICES else "other"
    return Call(kind, sources)
