"""Which layers make int8 slower: the numbered cases of ``slower_layers`` on layers that are known."""

from dataclasses import replace

import pytest

import export
from export.inspection import Inspection, Layer, role


def inspection(precision: str, *layers: tuple[str, str, float | None]) -> Inspection:
    made = tuple(Layer(name, kind, role(kind), "", time) for name, kind, time in layers)
    return Inspection("onnxruntime", precision, 1, 10, made)


FP32 = inspection("fp32", ("a", "Conv", 10.0), ("b", "Conv", 10.0), ("r", "Relu", 1.0), ("c", "Gemm", 5.0))


def test_case_1_the_stretch_that_lost_is_named_with_what_was_added() -> None:
    int8 = inspection(
        "int8",
        ("x_q", "QuantizeLinear", 1.0),
        ("a_q", "QLinearConv", 4.0),
        ("b_q", "QLinearConv", 6.0),
        ("d", "DequantizeLinear", 4.0),
        ("h", "HardSigmoid", 9.0),
        ("c_q", "QGemm", 5.1),
    )
    slow, first = export.slower_layers(FP32, int8)
    assert (slow.name, slow.kind, slow.fp32_us, slow.int8_us) == ("b_q", "Conv", 11.0, 19.0)
    assert slow.added == ("1 DequantizeLinear", "1 HardSigmoid")
    assert slow.lost_us == 8.0
    assert slow.line() == "b_q (Conv): 11 us in fp32, 19 us in int8, with 1 DequantizeLinear, 1 HardSigmoid added"
    assert (first.name, first.fp32_us, first.int8_us) == ("x_q", 0.0, 1.0)


def test_case_2_other_kernels_are_compared_kind_by_kind() -> None:
    int8 = inspection("int8", ("a", "QLinearConv", 25.0), ("q", "QuantizeLinear", 3.0), ("c", "QGemm", 1.0))
    found = export.slower_layers(FP32, int8)
    assert [(each.kind, each.lost_us) for each in found] == [("Conv", 5.0), ("QuantizeLinear", 3.0)]


def test_case_3_noise_is_not_named() -> None:
    same = replace(FP32, precision="int8")
    assert export.slower_layers(FP32, same) == ()
    almost = inspection("int8", ("a", "Conv", 10.4), ("b", "Conv", 9.0), ("r", "Relu", 1.0), ("c", "Gemm", 5.0))
    assert export.slower_layers(FP32, almost) == ()


def test_wrong_use_is_one_line() -> None:
    with pytest.raises(
        ValueError, match=r"^slower_layers compares fp32 with int8 in one backend, got onnxruntime fp32"
    ):
        export.slower_layers(FP32, FP32)
    silent = inspection("int8", ("a", "Conv", None))
    with pytest.raises(ValueError, match=r"^onnxruntime tells no times"):
        export.slower_layers(FP32, silent)
