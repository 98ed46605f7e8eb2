"""Count the parts of a TFLite model that XNNPACK runs: ``delegates, builtin = pieces(path)``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hnas.export.device.runtimes.tflite import interpreter

_DELEGATE = "DELEGATE"


def pieces(model: Path) -> tuple[int, int]:
    """Return the number of XNNPACK delegates, and of operators left to built-in kernels.

    (1, 0) is ideal. Every change between XNNPACK and built-in kernels copies data, and built-in kernels are several
    times slower.
    """
    opened = interpreter(model, 1)
    operators = opened._get_ops_details()  # there is no public call for it
    ends = {int(detail["index"]) for detail in opened.get_output_details()}
    return count_delegates(operators), sum(built_in for _, built_in in with_kernels(operators, ends))


def count_delegates(operators: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of delegates among the operators that an interpreter lists."""
    return sum(operator["op_name"] == _DELEGATE for operator in operators)


def with_kernels(operators: Sequence[Mapping[str, Any]], ends: set[int]) -> list[tuple[Mapping[str, Any], bool]]:
    """Return each operator of the file, with True if a built-in kernel runs it and False if XNNPACK runs it.

    A built-in kernel runs an operator if no delegate writes its output, and a delegate or the caller reads its output.

    operators: as an interpreter lists them after delegation; delegates follow the operators that they replace.
    ends: indices of the model's outputs.
    """
    delegates = [operator for operator in operators if operator["op_name"] == _DELEGATE]
    made = {int(index) for delegate in delegates for index in delegate["outputs"]}
    wanted = {int(index) for delegate in delegates for index in delegate["inputs"]} | ends
    found = []
    for operator in operators:
        if operator["op_name"] != _DELEGATE:
            outputs = {int(index) for index in operator["outputs"]}
            found.append((operator, not delegates or bool(outputs & wanted and not outputs & made)))
    return found
