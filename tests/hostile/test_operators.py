"""A graph from a file may name the listed operators only, and no list is so long that it has one that acts."""

from __future__ import annotations

import pytest

from hnas.export.device.notation import read_operator
from hnas.export.device.operators import OPERATORS

pytest.importorskip("torch")


@pytest.mark.parametrize(
    "target",
    [
        "aten.from_file.default", "aten.relu_.default", "aten.set_.source_Tensor", "aten.record_stream.default",
        "aten.add.out", "aten._cuda_init.default", "aten.resize.default", "aten.nothing.default", "aten.relu.nothing",
        "prim.device.default", "quantized.add.default", "profiler._record_function_enter.default", "os.system.default",
        "aten", "", "aten.relu", "aten.relu.default.more", "aten.__class__.default",
    ],
)  # fmt: skip
def test_an_operator_outside_of_the_list_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match="not allowed here"):
        read_operator(target, {})


def test_usual_operators_are_read() -> None:
    for name in ("conv2d", "linear", "batch_norm", "scaled_dot_product_attention", "hardswish", "cat"):
        assert read_operator(f"aten.{name}.default", {}) is not None
    assert read_operator("aten.add.Tensor", {"alpha": 1}) is not None
    with pytest.raises(ValueError, match="not allowed here"):
        read_operator("aten.add.Tensor", {"alpha=__import__('os')": 1})


def test_no_listed_operator_acts_on_the_outside() -> None:
    words = ("file", "stream", "cuda", "storage", "pin_memory", "print")
    assert not [name for name in OPERATORS if name.endswith("_") or any(word in name for word in words)]
    assert 300 < len(OPERATORS) < 800
