"""Correct the biases of an ONNX file for int8: ``correct_biases(path, samples)``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hnas.export.device.errors import ExportError

if TYPE_CHECKING:
    import onnx

    from hnas.export.graph.samples import Samples

EDIT = "correct_biases"  # the name of this edit in records, as of that of `hnas.export.int8.rounding`
_ADDED = "hnas_bias"  # the beginning of the names of added values

_Array = NDArray[Any]


@dataclass(frozen=True)
class _Layer:
    """Hold a layer with a constant weight.

    holder, place: the node that reads the bias, and the index of that input; the layer itself or an addition after it.
    axis: the axis of the output channels in ``weight``.
    bias: None if the layer has none.
    """

    node: onnx.NodeProto
    holder: onnx.NodeProto
    place: int
    weight: _Array
    axis: int
    bias: _Array | None

    @property
    def channels(self) -> int:
        """Return the number of output channels."""
        return int(self.weight.shape[self.axis])

    def rounding(self, bits: int) -> _Array:
        """Return the change of each weight by rounding to ``bits``, with a symmetric scale for each output channel."""
        others = tuple(axis for axis in range(self.weight.ndim) if axis != self.axis)
        scale = np.abs(self.weight).max(others, keepdims=True) / (2 ** (bits - 1) - 1)
        steps = np.where(scale > 0, scale, 1.0)
        rounded: _Array = np.rint(self.weight / steps) * steps - self.weight
        return rounded.astype(self.weight.dtype)


def correct_biases(path: Path, samples: Samples, spared: Collection[str] = (), bits: int = 8) -> int:
    """Subtract from each bias the mean error of its channel by rounded weights. Return the number of changed layers.

    The error is that of `hnas.export.int8.rounding.correct_biases`, case 1: on the exact inputs of the layer, over all
    samples and positions. One run of the file for each sample gives the errors of all layers. The file is rewritten.

    samples: inputs, in the order of the file.
    spared: names of nodes that stay in float; of a node without a name, that of its first output.
    bits: of a weight.

    1. Conv, and Gemm without factors: corrected. A layer without a bias gets one.
    2. MatMul with a weight of two axes that only an addition of a constant reads: the constant is corrected.
    3. A weight that is computed, or a node in a branch: unchanged.

    Raises:
        ExportError: there is no layer of cases 1 and 2.

    Example: ``correct_biases(Path("net.onnx"), [(image,)])``.
    """
    import onnx

    model = onnx.load(path)
    layers = [each for each in _layers(model.graph) if (each.node.name or each.node.output[0]) not in spared]
    if not layers:
        raise ExportError("no layer of the ONNX file has a bias to correct")
    for index, (layer, error) in enumerate(zip(layers, _errors(model, layers, samples, bits), strict=True)):
        before = np.zeros(layer.channels, layer.weight.dtype) if layer.bias is None else layer.bias
        after = (before - error.reshape(before.shape)).astype(before.dtype)
        name = f"{_ADDED}_{index}"
        model.graph.initializer.append(onnx.numpy_helper.from_array(after, name))
        inputs = [*layer.holder.input, ""][: max(len(layer.holder.input), layer.place + 1)]
        inputs[layer.place] = name
        layer.holder.input[:] = inputs
    onnx.save(model, path)
    return len(layers)


def _layers(graph: onnx.GraphProto) -> list[_Layer]:
    """Return the layers of cases 1 and 2."""
    import onnx

    constants = {each.name: each for each in graph.initializer if each.data_type == onnx.TensorProto.FLOAT}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for value in graph.output:  # an output has a reader outside of the graph
        readers[value.name] = []
    kinds = ("Conv", "Gemm", "MatMul")
    known = [node for node in graph.node if node.op_type in kinds and node.input[1] in constants]  # not case 3
    found = (_layer(node, readers.get(node.output[0], []), constants) for node in known)
    return [layer for layer in found if layer is not None]


def _layer(
    node: onnx.NodeProto, users: Sequence[onnx.NodeProto], constants: Mapping[str, onnx.TensorProto]
) -> _Layer | None:
    """Return the layer of a node with a constant weight; None if its bias cannot be corrected."""
    from onnx.numpy_helper import to_array

    placed, weight = _bias_place(node, users, constants), to_array(constants[node.input[1]])
    if placed is None or (node.op_type != "Conv" and weight.ndim != 2):
        return None
    holder, place, axis = placed
    name = holder.input[place] if place < len(holder.input) else ""
    bias = to_array(constants[name]) if name in constants else None
    fits = not name if bias is None else bias.size == weight.shape[axis] and bias.shape[-1:] == (bias.size,)
    return _Layer(node, holder, place, weight, axis, bias) if fits else None


def _bias_place(
    node: onnx.NodeProto, users: Sequence[onnx.NodeProto], constants: Mapping[str, onnx.TensorProto]
) -> tuple[onnx.NodeProto, int, int] | None:
    """Return who reads the bias of a layer, as which input, and the axis of its channels; None if that is not known."""
    if node.op_type == "Conv":
        return node, 2, 0
    if node.op_type == "Gemm":
        known = {each.name: each.f if each.name in ("alpha", "beta") else each.i for each in node.attribute}
        plain = known.get("alpha", 1.0) == known.get("beta", 1.0) == 1.0 and not known.get("transA")
        return (node, 2, 0 if known.get("transB") else 1) if plain else None
    if len(users) != 1 or users[0].op_type != "Add":
        return None
    place = 1 if users[0].input[0] == node.output[0] else 0
    return (users[0], place, 1) if users[0].input[place] in constants else None


def _errors(model: onnx.ModelProto, layers: Sequence[_Layer], samples: Samples, bits: int) -> list[_Array]:
    """Return the mean error of each channel of each layer by rounded weights, over all samples."""
    import onnx
    import onnxruntime as ort

    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    graph, names = extended.graph, []
    for index, layer in enumerate(layers):
        weight, output = f"{_ADDED}_weight_{index}", f"{_ADDED}_error_{index}"
        graph.initializer.append(onnx.numpy_helper.from_array(layer.rounding(bits), weight))
        copy = graph.node.add()
        copy.CopyFrom(layer.node)
        copy.name, copy.input[:], copy.output[:] = output, [layer.node.input[0], weight], [output]
        if layer.node.op_type == "Conv":  # the mean over the map, so that no map is kept
            mean = f"{output}_mean"
            graph.node.append(onnx.helper.make_node("GlobalAveragePool", [output], [mean]))
            output = mean
        names.append(output)
    kind = onnx.TensorProto.FLOAT
    graph.output.extend(onnx.helper.make_tensor_value_info(name, kind, None) for name in names)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = ort.InferenceSession(extended.SerializeToString(), options, providers=["CPUExecutionProvider"])
    sums = [np.zeros(layer.channels) for layer in layers]
    for sample in samples:
        feed = dict(zip((value.name for value in model.graph.input), sample, strict=True))
        for index, value in enumerate(session.run(names, feed)):
            channel = 1 if layers[index].node.op_type == "Conv" else value.ndim - 1
            sums[index] += value.mean(tuple(axis for axis in range(value.ndim) if axis != channel), np.float64)
    return [total / len(samples) for total in sums]
