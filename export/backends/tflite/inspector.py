"""Read the layers of a TFLite model: the operators that ran, with the XNNPACK kernels, timed by LiteRT's profiler.

For a runtime without a known profiler (tflite-runtime, another major version), the layers are the operators of the
file, without times. Each layer then states whether XNNPACK runs it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hnas.export.backends.tflite.delegation import count_delegates, with_kernels
from hnas.export.backends.tflite.profiler import Ran, profile
from hnas.export.device.errors import ExportError
from hnas.export.device.signature import check_inputs
from hnas.export.proof.inspection import Layer, Role, role_of, typical_time

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hnas.export.device.artifact import Artifact

FUSES = "XNNPACK fuses relu and relu6 with the operator before them; built-in kernels are several times slower"
_TYPES = {"float32": "f32", "float16": "f16", "int8": "i8", "uint8": "u8"}
# XNNPACK's "Convolution (NHWC, QC8) IGEMM": kind, data types, kernel. QD8 computes in int8 between float tensors.
_WORDS = re.compile(r"(?P<kind>[^(]+?) \((?:\w+)(?:, (?P<type>\w+))?[^)]*\) ?(?P<kernel>.*)")
_PRECISIONS = {"F32": "f32", "F16": "f16", "BF16": "bf16", "QS8": "i8", "QC8": "i8", "QD8": "i8", "QU8": "u8"}
_TABLE = "Invalid Unary Op"  # XNNPACK's name for the lookup table that replaces dequantise, function, quantise
_ROLES: Mapping[str, Role] = {
    "Convert": "quantise",
    "Copy": "layout",
    "Clamp": "activation",
    _TABLE: "activation",
    **dict.fromkeys(
        ("Subtract", "Multiply", "Divide", "Square", "Square Root", "Reciprocal Square Root"), "arithmetic"
    ),
}
_PRODUCTS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL")
_XNNPACK_PRODUCTS = ("Convolution", "Fully Connected", "Deconvolution", "Batch Matrix Multiply")


def layers(artifact: Artifact, inputs: Sequence[NDArray[Any]], runs: int) -> list[Layer]:
    """Return the operators in the order in which they ran. ``implementation`` is an XNNPACK or a built-in kernel."""
    from hnas.export.device.runtimes import tflite

    opened = tflite.interpreter(artifact.model, artifact.threads)
    tensors = {int(detail["index"]): detail for detail in opened.get_tensor_details()}
    operators = opened._get_ops_details()  # there is no public call for it
    values = tflite.to_runtime(check_inputs(inputs, artifact.inputs), artifact.notes.get("layout"))
    names = [str(tensors[index]["name"]) for index in tflite.indices(opened.get_input_details())]
    try:
        ran = profile(artifact.model, dict(zip(names, values, strict=True)), artifact.threads, runs)
    except ExportError:
        ends = {int(detail["index"]) for detail in opened.get_output_details()}
        return from_operators(operators, tensors, ends)
    return from_profile(ran, _products(operators, tensors))


def from_profile(runs: Sequence[Sequence[Ran]], products: Sequence[str] = ()) -> list[Layer]:
    """Return the layers of a profile.

    XNNPACK drops the names of operators. Convolutions and products are named as in ``products``, if the profile has
    equally many. All other layers are named by their number.

    runs: the operators of each call.
    products: names of the file's convolutions and matrix products, in order.
    """
    times = zip(*([operator.microseconds for operator in run] for run in runs), strict=True)
    found = [_ran(operator, typical_time(map(float, each))) for operator, each in zip(runs[0], times, strict=True)]
    numbers = [number for number, layer in enumerate(found) if layer.kind in (*_XNNPACK_PRODUCTS, *_PRODUCTS)]
    names = dict(zip(numbers, products, strict=True)) if len(numbers) == len(products) else {}
    return [replace(layer, name=names.get(number, f"#{number + 1}")) for number, layer in enumerate(found)]


def _ran(operator: Ran, microseconds: float) -> Layer:
    if not operator.delegated:
        return Layer("", operator.name, role_of(operator.name), "", microseconds, "built-in kernel")
    words = _WORDS.fullmatch(operator.name)
    kind, type_, kernel = words.group("kind", "type", "kernel") if words else (operator.name, "", "")
    said = "Table" if kind == _TABLE else kind
    precision, where = _PRECISIONS.get(type_ or "", ""), f"XNNPACK {kernel}".strip()
    return Layer("", said, _ROLES.get(kind) or role_of(kind), precision, microseconds, where)


def _products(operators: Sequence[Mapping[str, Any]], tensors: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """Return the names of the file's convolutions and matrix products.

    The list is empty where the graph is split into several delegates, because their order is not the file's.
    """
    if count_delegates(operators) != 1:
        return []
    made = [min(map(int, operator["outputs"])) for operator in operators if operator["op_name"] in _PRODUCTS]
    return [str(tensors.get(index, {}).get("name", "")) for index in made]


def from_operators(
    operators: Sequence[Mapping[str, Any]], tensors: Mapping[int, Mapping[str, Any]], ends: set[int]
) -> list[Layer]:
    """Return the layers of a graph after delegation, without times.

    operators: as the interpreter lists them; delegates follow the operators that they replace.
    ends: the indices of the model's outputs.
    """
    found = []
    for operator, built_in in with_kernels(operators, ends):
        first = tensors.get(min(map(int, operator["outputs"]), default=-1), {})
        precision = _TYPES.get(np.dtype(first["dtype"]).name, "") if "dtype" in first else ""
        kind, name = str(operator["op_name"]), str(first.get("name", ""))
        found.append(Layer(name, kind, role_of(kind), precision, None, "built-in kernel" if built_in else "XNNPACK"))
    return found
