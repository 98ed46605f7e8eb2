"""LiteRT's view: the operators of the file, and which of them XNNPACK took.

The runtime's Python package profiles no operators, so there are no times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from export.inspection import Layer, role

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from export.artifact import Artifact

FUSES = "XNNPACK takes relu and relu6 into what is before them; a built-in kernel is several times slower than its own"
_TYPES = {"float32": "f32", "float16": "f16", "int8": "i8", "uint8": "u8"}


def layers(artifact: Artifact, inputs: Sequence[NDArray[Any]], runs: int) -> list[Layer]:
    """The operators in the order of the file; ``implementation`` tells XNNPACK's from built-in kernels."""
    from export.runtimes.tflite import interpreter

    del inputs, runs
    opened = interpreter(artifact.model, artifact.threads)
    ends = {int(detail["index"]) for detail in opened.get_output_details()}
    tensors = {int(detail["index"]): detail for detail in opened.get_tensor_details()}
    return from_operators(opened._get_ops_details(), tensors, ends)  # no public call tells it


def from_operators(
    operators: Sequence[Mapping[str, Any]], tensors: Mapping[int, Mapping[str, Any]], ends: set[int]
) -> list[Layer]:
    """The layers of a graph after delegation: its pieces are listed behind the operators that they replace."""
    pieces = [operator for operator in operators if operator["op_name"] == "DELEGATE"]
    made = {int(index) for piece in pieces for index in piece["outputs"]}
    wanted = {int(index) for piece in pieces for index in piece["inputs"]} | ends
    found = []
    for operator in operators:
        if operator["op_name"] == "DELEGATE":
            continue
        outputs = {int(index) for index in operator["outputs"]}
        alone = not pieces or bool(outputs & wanted and not outputs & made)
        first = tensors.get(min(outputs, default=-1), {})
        precision = _TYPES.get(np.dtype(first["dtype"]).name, "") if "dtype" in first else ""
        kind = str(operator["op_name"])
        where = "built-in kernel" if alone else "XNNPACK"
        found.append(Layer(str(first.get("name", "")), kind, role(kind), precision, None, where))
    return found
