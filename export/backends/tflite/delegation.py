"""What XNNPACK takes of a TFLite model, and what it leaves to the slow built-in kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hnas.export.device.runtimes.tflite import interpreter


def pieces(model: Path) -> tuple[int, int]:
    """How many pieces of the graph XNNPACK runs, and how many operators are left to the slow built-in kernels.

    1 and 0 is a whole graph. Every change of hands costs a copy; built-in kernels are several times slower.
    """
    opened = interpreter(model, 1)
    operators = opened._get_ops_details()  # no public call tells it
    delegates = [operator for operator in operators if operator["op_name"] == "DELEGATE"]
    made = {int(index) for piece in delegates for index in piece["outputs"]}
    read = {int(index) for piece in delegates for index in piece["inputs"]}
    singles = [operator for operator in operators if operator["op_name"] != "DELEGATE"]
    ends = {int(detail["index"]) for detail in opened.get_output_details()}
    return len(delegates), sum(_alone(operator, made, read, ends, delegates) for operator in singles)


def _alone(operator: dict[str, Any], made: set[int], read: set[int], ends: set[int], delegates: list[Any]) -> bool:
    """Whether a built-in kernel runs ``operator``: what it makes is wanted outside of it, and no piece makes it."""
    outputs = {int(index) for index in operator["outputs"]}
    return not delegates or bool(outputs & (read | ends) and not outputs & made)
