"""Predict which parts of an ONNX file TensorRT refuses or runs slowly, before anything is sent or built.

Call ``check_model(path, precision, newest)``. Sources: the operator matrix of onnx-tensorrt 8.5 (docs/operators.md);
the chapter "Working with Quantized Types" of TensorRT's documentation; files that TensorRT-RTX 1.7 refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hnas.export.onnx.walk import LAYERS

if TYPE_CHECKING:
    import onnx

_SINCE = {
    "LayerNormalization": (8, 6),
    "GroupNormalization": (8, 6),
    "Mod": (8, 5),
    "OneHot": (8, 5),
    "NonZero": (8, 5),
}
ABSENT = frozenset(  # in every version up to 10
    [
        *("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "DynamicQuantizeLinear"),
        *("SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength"),
        *("ConcatFromSequence", "SplitToSequence", "SequenceMap", "StringNormalizer", "TfIdfVectorizer", "Det"),
        *("Optional", "OptionalGetElement", "OptionalHasElement", "MaxRoiPool", "MaxUnpool", "Multinomial"),
        *("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"),
    ]
)
_ABSENT_8_5 = ABSENT | {
    *("Bernoulli", "BitShift", "BlackmanWindow", "Compress", "DFT", "HammingWindow", "HannWindow", "Hardmax", "IsInf"),
    *("MelWeightMatrix", "STFT", "Unique"),
}
_QUANTISERS = ("QuantizeLinear", "DequantizeLinear")
_VECTOR = {"fp16": 8, "int8": 16}  # channels in a vector of the tensor cores; fewer are padded


class _Findings(NamedTuple):
    """Hold the findings, one sentence each.

    refused: parts that TensorRT would not build.
    slow: parts that TensorRT would build, but run slowly.
    """

    refused: tuple[str, ...]
    slow: tuple[str, ...]


def check_model(path: Path, precision: str, newest: tuple[int, ...] | None, open_size: str = "") -> _Findings:
    """Return sentences on the parts of the file that TensorRT would refuse, and that it would run slowly.

    Refused:

    1. An operator that TensorRT lacks, or has only in a later version than that of the device. Every operator of a
       domain other than ONNX's own.
    2. An input or output without a fixed shape, except for the size ``open_size`` of its optimisation profile.
    3. float64 weights, which would become float32 without a message.
    4. A quantiser whose zero point is not 0 or not of type int8: TensorRT's scheme is symmetric.
    5. A dequantiser of int32, as quantised biases need it.
    6. A quantised constant that an operator other than a dequantiser reads.

    Slow:

    7. Channels that do not fill the vectors of the tensor cores in this precision.
    8. An addition with one quantised input, and one float input that no layer makes: it is not fused with a layer.

    newest: the newest TensorRT version of the device; None if unknown.
    """
    import onnx

    graph = onnx.load(path).graph
    refused = [*_operators(graph, newest), *_shapes(graph, open_size), *_constants(graph)]
    slow = [*_vectors(graph, precision), *(_half_quantised(graph) if precision == "int8" else ())]
    return _Findings(tuple(dict.fromkeys(refused)), tuple(dict.fromkeys(slow)))


def _operators(graph: onnx.GraphProto, newest: tuple[int, ...] | None) -> Iterator[str]:
    for name in sorted({f"{node.domain}.{node.op_type}" for node in graph.node if node.domain not in ("", "ai.onnx")}):
        yield f"TensorRT has no {name}; choose a net without it"  # case 1
    for name in sorted({node.op_type for node in graph.node}):
        since = _SINCE.get(name)
        if name in (_ABSENT_8_5 if newest and newest <= (8, 5) else ABSENT):
            yield f"TensorRT has no {name}; choose a net without it"  # case 1
        if since and newest and newest < since:
            wanted, there = ".".join(map(str, since)), ".".join(map(str, newest))
            # case 1
            yield f"{name} needs TensorRT {wanted}, the device has {there}; choose a net without it"


def _shapes(graph: onnx.GraphProto, open_size: str) -> Iterator[str]:
    for end in (*graph.input, *graph.output):
        sizes = end.type.tensor_type.shape.dim
        if not all(size.dim_value > 0 or (open_size and size.dim_param == open_size) for size in sizes):
            # case 2
            yield f"{end.name} has no fixed shape; export the net with one"


def _constants(graph: onnx.GraphProto) -> Iterator[str]:
    import onnx

    constants = {value.name: value for value in graph.initializer}
    for name, value in constants.items():
        if value.data_type == onnx.TensorProto.DOUBLE:  # case 3
            yield f"{name} is float64, which TensorRT would round to float32; make it float32"
    for node in graph.node:
        yield from (_quantiser if node.op_type in _QUANTISERS else _reader)(node, constants)


def _quantiser(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> Iterator[str]:
    import onnx

    kinds = onnx.TensorProto
    source = constants.get(node.input[0])
    zero = constants.get(node.input[2]) if len(node.input) > 2 else None
    if source is not None and source.data_type == kinds.INT32:  # case 5
        yield f"{node.input[0]} is dequantised from int32, which TensorRT's parser refuses; keep biases float"
    elif zero is not None and zero.data_type != kinds.INT8:  # case 4
        yield f"{node.name or node.op_type} is of {kinds.DataType.Name(zero.data_type)}, TensorRT quantises to int8"
    elif zero is not None and onnx.numpy_helper.to_array(zero).any():  # case 4
        yield f"{node.name or node.op_type} has a zero point other than 0; TensorRT's quantisation is symmetric"


def _reader(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> Iterator[str]:
    import onnx

    for name in node.input:
        if name in constants and constants[name].data_type == onnx.TensorProto.INT8:  # case 6
            yield f"{node.name or node.op_type} reads the quantised constant {name}; only a dequantiser may"


def _vectors(graph: onnx.GraphProto, precision: str) -> Iterator[str]:
    """Find channels that do not fill a vector. Depthwise convolutions are left out: they do not use tensor cores."""
    if precision not in _VECTOR:
        return
    shapes = {value.name: tuple(value.dims) for value in graph.initializer}
    made = {name: node for node in graph.node for name in node.output}
    odd = []
    for node in graph.node:
        shape = shapes.get(_weight(node, made)) if node.op_type in LAYERS else None
        group = next((a.i for a in node.attribute if a.name == "group"), 1)
        if shape is not None and group == 1 and any(size % _VECTOR[precision] for size in shape[:2]):
            odd.append(shape)
    if odd:
        example = "x".join(map(str, odd[0]))
        what = f"{len(odd)} layer(s) have channels that are no multiple of {_VECTOR[precision]} (one is {example})"
        yield f"{what}: {precision} vectors are padded there"  # case 7


def _half_quantised(graph: onnx.GraphProto) -> Iterator[str]:
    made = {name: node for node in graph.node for name in node.output}
    constants = {value.name for value in graph.initializer}
    for node in [each for each in graph.node if each.op_type == "Add"]:
        kinds = [made[name].op_type if name in made else "" for name in node.input if name not in constants]
        if len(kinds) == 2 and kinds.count("DequantizeLinear") == 1 and not set(kinds) & LAYERS:
            # case 8
            yield f"{node.name or 'an addition'} has one quantised input and one float one: it stays a separate kernel"


def _weight(node: onnx.NodeProto, made: Mapping[str, Any]) -> str:
    """Return the name of the constant behind a layer's second input, through its quantiser and dequantiser."""
    name = node.input[1] if len(node.input) > 1 else ""
    while name in made and made[name].op_type in _QUANTISERS:
        name = made[name].input[0]
    return str(name)
