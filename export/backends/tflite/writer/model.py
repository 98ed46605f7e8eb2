"""Represent a TFLite model as plain objects, and write its bytes with the schema of the LiteRT runtime.

Call ``pack_model(model)``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hnas.export.device.errors import Unavailable

ALIGNMENT = 16  # bytes; the schema requires it for constants
FUSED = {"RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}  # activations that fuse; the schema's numbers
OPTIONS = {  # options that are not named after their operator
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "MEAN": "ReducerOptions",
    "SUM": "ReducerOptions",
    "REDUCE_MAX": "ReducerOptions",
    "REDUCE_MIN": "ReducerOptions",
    "REDUCE_PROD": "ReducerOptions",
    "REDUCE_ANY": "ReducerOptions",
    "REDUCE_ALL": "ReducerOptions",
    "TOPK_V2": "TopKV2Options",
    "CONV_3D": "Conv3DOptions",
    "MAXIMUM": "MaximumMinimumOptions",
    "MINIMUM": "MaximumMinimumOptions",
    "PADV2": "PadV2Options",
    "BATCH_MATMUL": "BatchMatMulOptions",
    "LEAKY_RELU": "LeakyReluOptions",
}
# The versions that an operator needs in int8 and in float.
_VERSIONS = {"CONV_2D": (3, 1), "DEPTHWISE_CONV_2D": (3, 2), "FULLY_CONNECTED": (4, 2), "TRANSPOSE_CONV": (3, 1)}
_VERSIONS |= {"QUANTIZE": (2, 1), "RESIZE_BILINEAR": (3, 3), "SUM": (2, 1), "RESHAPE": (1, 1), "BROADCAST_TO": (3, 2)}


@dataclass(frozen=True, eq=False)
class Scale:
    """Define the meaning of int8 or int32 numbers: the value is ``scale * (number - zero)``.

    scale: one number, or one for each channel along ``axis``.
    """

    scale: NDArray[np.float32]
    zero: int = 0
    axis: int = 0


@dataclass(eq=False)
class Value:
    """Describe a tensor.

    data: the array of a constant; None for any other tensor.
    range: the observed minimum and maximum of an activation; None if unknown.
    scale: the scale of an int8 or int32 tensor; None for any other tensor.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    data: NDArray[Any] | None = None
    range: tuple[float, float] | None = None
    scale: Scale | None = None
    name: str = ""


@dataclass(eq=False)
class Operator:
    """Describe one call of an operator.

    kind, options: named as in the schema.
    kept: True keeps the operator in float in an int8 model.
    """

    kind: str
    inputs: list[Value | None]
    output: list[Value]
    options: dict[str, Any] = field(default_factory=dict)
    kept: bool = False

    @property
    def activations(self) -> list[Value]:
        """Return the inputs that are not constant."""
        return [value for value in self.inputs if value is not None and value.data is None]


_Readers = dict[Value, list[Operator]]
_Makers = dict[Value, Operator]


@dataclass(eq=False)
class Model:
    """Hold the operators in the order in which they run."""

    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    operators: list[Operator] = field(default_factory=list)
    _links: tuple[_Readers, _Makers] | None = None

    @property
    def readers(self) -> _Readers:
        """Return the operators that read each value. Being an output of the model does not count as a read."""
        return self._linked()[0]

    @property
    def makers(self) -> _Makers:
        """Return the operator that computes each value. Inputs and constants have none."""
        return self._linked()[1]

    def is_single(self, value: Value) -> bool:
        """Return whether exactly one operator reads ``value``, and ``value`` is not an output of the model."""
        return len(self.readers.get(value, [])) == 1 and value not in self.outputs

    def changed(self) -> None:
        """Drop the cached readers and makers. Call it after every change of operators."""
        self._links = None

    def _linked(self) -> tuple[_Readers, _Makers]:
        if self._links is None:
            readers: _Readers = {}
            for operator in self.operators:
                for value in dict.fromkeys(operator.activations):
                    readers.setdefault(value, []).append(operator)
            makers = {value: operator for operator in self.operators for value in operator.output}
            self._links = readers, makers
        return self._links

    def values(self) -> Iterator[Value]:
        """Yield every tensor once."""
        seen = dict.fromkeys(self.inputs)
        for operator in self.operators:
            seen |= dict.fromkeys(value for value in operator.inputs if value is not None)
            seen |= dict.fromkeys(operator.output)
        return iter(seen | dict.fromkeys(self.outputs))


def constant_tensor(data: NDArray[Any] | Sequence[int] | Sequence[Sequence[int]], dtype: str | None = None) -> Value:
    """Return a constant; Python integers, such as axes and shapes, become int32."""
    array = np.ascontiguousarray(np.asarray(data, dtype or (None if isinstance(data, np.ndarray) else "int32")))
    return Value(array.shape, str(array.dtype), array)


def pack_model(model: Model) -> bytes:
    """Return the flatbuffer. Inputs and outputs are named args_0, output_0, ..., as converters name them."""
    schema = _schema()
    weights = 0
    made, graph = schema.ModelT(), schema.SubGraphT()
    made.version, made.subgraphs, made.operatorCodes = 3, [graph], []
    made.buffers, graph.tensors, graph.operators = [schema.BufferT()], [], []  # buffer 0 is empty by contract
    for kind, values in (("args", model.inputs), ("output", model.outputs)):
        for number, value in enumerate(values):
            value.name = f"{kind}_{number}"
    indices: dict[Value, int] = {}
    buffers: dict[bytes | int, int] = {}
    for value in model.values():
        indices[value] = len(graph.tensors)
        tensor = _tensor(schema, value, indices[value])
        if value.data is not None:
            key = value.data.tobytes() if value.data.nbytes <= 64 else id(value.data)
            if key not in buffers:
                buffers[key] = len(made.buffers)
                made.buffers.append(_buffer_type()(np.ascontiguousarray(value.data).reshape(-1).view(np.uint8)))
                weights += value.data.nbytes + 64
            tensor.buffer = buffers[key]
        graph.tensors.append(tensor)
    codes: dict[tuple[int, int], int] = {}
    for operator in model.operators:
        graph.operators.append(_operator(schema, operator, indices, codes))
    made.operatorCodes = [_code(schema, *code) for code in codes]
    graph.inputs = np.array([indices[value] for value in model.inputs], np.int32)
    graph.outputs = np.array([indices[value] for value in model.outputs], np.int32)
    builder = schema.flatbuffers.Builder(weights + 512 * (len(graph.tensors) + 8))
    builder.Finish(made.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _schema() -> Any:
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError:  # tflite-runtime has no schema
        raise Unavailable("ai-edge-litert is not installed; pip install 'hnas[tflite]'") from None
    return schema_py_generated


@cache
def _buffer_type() -> Any:
    """Return the schema's buffer class with aligned data: the generated code ignores the alignment."""
    schema = _schema()
    generated: Any = schema.BufferT

    class Buffer(generated):  # type: ignore[misc]
        def Pack(self, builder: Any) -> Any:  # noqa: N802  # the name is generated
            builder.StartVector(1, len(self.data), ALIGNMENT)
            builder.head -= len(self.data)
            builder.Bytes[builder.head : builder.head + len(self.data)] = memoryview(self.data)
            data = builder.EndVector()
            schema.BufferStart(builder)
            schema.BufferAddData(builder, data)
            return schema.BufferEnd(builder)

    return Buffer


def _tensor(schema: Any, value: Value, index: int) -> Any:
    tensor = schema.TensorT()
    tensor.shape, tensor.name = np.array(value.shape, np.int32), (value.name or f"t{index}").encode()
    tensor.type, tensor.hasRank = getattr(schema.TensorType, value.dtype.upper()), True
    if value.scale is not None:
        found = schema.QuantizationParametersT()
        found.scale = np.asarray(value.scale.scale, np.float32).reshape(-1)
        found.zeroPoint = np.full(len(found.scale), value.scale.zero, np.int64)
        found.quantizedDimension = value.scale.axis
        tensor.quantization = found
    return tensor


def _operator(schema: Any, operator: Operator, indices: Mapping[Value, int], codes: dict[tuple[int, int], int]) -> Any:
    made = schema.OperatorT()
    made.inputs = np.array([-1 if value is None else indices[value] for value in operator.inputs], np.int32)
    made.outputs = np.array([indices[value] for value in operator.output], np.int32)
    in_int8 = any(value.dtype == "int8" for value in operator.output)
    version = _VERSIONS.get(operator.kind, (2, 1))[0 if in_int8 else 1]
    code = (getattr(schema.BuiltinOperator, operator.kind), version)
    made.opcodeIndex = codes.setdefault(code, len(codes))
    name = OPTIONS.get(operator.kind) or re.sub(r"(^|_)([A-Z])([A-Z]*)", _capital, operator.kind) + "Options"
    options = getattr(schema, f"{name}T", None)
    if options is not None:
        made.builtinOptionsType = getattr(schema.BuiltinOptions, name)
        made.builtinOptions = options()
        for key, value in operator.options.items():
            assert hasattr(made.builtinOptions, key), (operator.kind, key)
            setattr(made.builtinOptions, key, value)
    return made


def _capital(word: re.Match[str]) -> str:
    return word[2] + word[3].lower()


def _code(schema: Any, builtin: int, version: int) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode, code.deprecatedBuiltinCode, code.version = builtin, min(builtin, 127), version
    return code
