"""Test the numbered cases of ``slower_layers`` on known layers."""

from dataclasses import replace

import pytest

from hnas import export
from hnas.export.proof.inspection import Inspection, Layer, role_of
from hnas.export.proof.slowdown import Slowdown, SlowerLayer, attainable


def inspection(precision: str, *layers: tuple[str, str, float | None]) -> Inspection:
    made = tuple(Layer(name, kind, role_of(kind), "", time) for name, kind, time in layers)
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
    assert (slow.name, slow.kind, slow.float_us, slow.int8_us) == ("b_q", "Conv", 11.0, 19.0)
    assert slow.added == ("1 DequantizeLinear", "1 HardSigmoid")
    assert slow.lost_us == 8.0
    assert slow.line() == (
        "b_q (Conv): 0.011 ms in float, 0.019 ms in int8, with 1 DequantizeLinear, 1 HardSigmoid added"
    )
    assert (first.name, first.float_us, first.int8_us) == ("x_q", 0.0, 1.0)


def test_case_2_other_kernels_are_compared_kind_by_kind() -> None:
    int8 = inspection("int8", ("a", "QLinearConv", 25.0), ("q", "QuantizeLinear", 3.0), ("c", "QGemm", 1.0))
    found = export.slower_layers(FP32, int8)
    assert [(each.kind, each.lost_us) for each in found] == [("Conv", 5.0), ("QuantizeLinear", 3.0)]
    assert found[0].line() == "every Conv: 0.02 ms in float, 0.025 ms in int8"


def test_case_3_noise_is_not_named() -> None:
    same = replace(FP32, precision="int8")
    assert export.slower_layers(FP32, same) == ()
    almost = inspection("int8", ("a", "Conv", 10.4), ("b", "Conv", 9.0), ("r", "Relu", 1.0), ("c", "Gemm", 5.0))
    assert export.slower_layers(FP32, almost) == ()


def test_wrong_use_is_one_line() -> None:
    with pytest.raises(
        ValueError, match=r"^slower_layers compares float with int8 in one backend, got onnxruntime fp32"
    ):
        export.slower_layers(FP32, FP32)
    silent = inspection("int8", ("a", "Conv", None))
    with pytest.raises(ValueError, match=r"^onnxruntime reports no times"):
        export.slower_layers(FP32, silent)


def test_any_float_precision_is_set_against_int8() -> None:
    int8 = inspection("int8", ("a", "Conv", 20.0), ("b", "Conv", 9.0), ("r", "Relu", 1.0), ("c", "Gemm", 5.0))
    (slow,) = export.slower_layers(replace(FP32, precision="bf16"), int8)
    assert (slow.name, slow.lost_us) == ("a", 10.0)


def test_what_the_faster_precision_of_each_layer_would_take() -> None:
    int8 = inspection("int8", ("a", "Conv", 20.0), ("b", "Conv", 4.0), ("r", "Relu", 1.0), ("c", "Gemm", 4.0))
    assert attainable(FP32, int8) == pytest.approx((10 + 5 + 4) / 26)
    assert attainable(FP32, replace(FP32, precision="int8")) == 1.0


def test_the_line_says_how_much_slower_and_by_which_layers() -> None:
    slow = (SlowerLayer("norm", "MVN", 3.0, 90.0, ("2 Convert",)), SlowerLayer("add", "Eltwise", 1.0, 4.0))
    assert Slowdown("fp32", 0.931, slow, 0.8).line() == (
        "int8 is slower here than fp32 (x0.93): norm (MVN): 0.003 ms in float, 0.09 ms in int8, with 2 Convert added; "
        "add (Eltwise): 0.001 ms in float, 0.004 ms in int8"
    )
    assert Slowdown("fp32", 0.931, slow[1:] * 6, 0.8).line().count("add (Eltwise)") == 4
    assert Slowdown("fp32", 0.931, slow[1:] * 6, 0.8).line().endswith("; 2 more")
    assert Slowdown("bf16", 0.99).line() == "int8 is no faster here than bf16 (x0.99)"
    with pytest.raises(ValueError, match=r"^ratio is 0, expected more than 0"):
        Slowdown("fp32", 0.0)
