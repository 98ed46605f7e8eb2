"""Test the roles of layers, and what an inspection reports of them."""

import json

import pytest

from hnas.export.proof.inspection import Inspection, Layer, role_of, typical_time


def inspection(*layers, precision="int8", fuses=""):
    return Inspection("somebody", precision, 1, 30, layers, fuses)


EDGE = "each is an edge between layers that compute in int8 and layers that do not"


def layer(kind, precision="i8", microseconds=10.0):
    return Layer(kind.lower(), kind, role_of(kind), precision, microseconds)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (
            "Conv FusedConv Convolution FullyConnected MatMul QLinearConv QGemm QLinearMatMul CONV_2D Softmax",
            "kernel",
        ),
        ("HardSigmoid Clip Relu QuickGelu HARD_SWISH LOGISTIC LeakyRelu Math", "activation"),
        ("LayerNormalization BatchNormalization MVN", "norm"),
        ("Add QLinearAdd Mul Eltwise Subgraph SQUARED_DIFFERENCE", "arithmetic"),
        ("Reorder ReorderInput ReorderOutput Transpose Reshape RESHAPE Reformat Convert", "layout"),
        ("QuantizeLinear DequantizeLinear FakeQuantize QUANTIZE DEQUANTIZE", "quantise"),
    ],
)
def test_the_role_of_a_kind(kinds, expected):
    assert {role_of(kind) for kind in kinds.split()} == {expected}


def test_findings_name_what_is_left_and_its_share():
    found = inspection(
        layer("QLinearConv", "u8", 50.0),
        layer("Conv", "f32", 20.0),
        layer("HardSigmoid", "f32", 10.0),
        layer("QuantizeLinear", "f32", 10.0),
        layer("DequantizeLinear", "u8", 5.0),
        layer("Reorder", "f32", 5.0),
        fuses="it ends a convolution with relu alone",
    )
    assert found.microseconds == 100.0
    assert found.findings == (
        "1 HardSigmoid not fused (10% of the time); it ends a convolution with relu alone",
        f"1 QuantizeLinear, 1 DequantizeLinear left (15% of the time); {EDGE}",
        "1 Reorder move data only (5% of the time); kernels on both sides want another layout or shape",
        "of 2 kernels in an int8 artifact 1 Conv compute in f32 (20% of the time)",
    )
    assert found.rows()[1] == ("2", "Conv", "kernel", "f32", "20.0", "20.0%", "", "conv")
    assert found.summary() == "somebody, int8: 6 layers, 2 of them kernels; 0.1 ms in the profiler, n=30"


def test_a_graph_of_kernels_has_no_findings():
    assert inspection(layer("QLinearConv", "u8"), layer("QGemm", "i8")).findings == ()
    assert inspection(layer("Convolution", "bf16"), precision="bf16").findings == ()


def test_without_times_there_are_no_shares():
    found = inspection(Layer("a", "CONV_2D", "kernel", "i8"), Layer("b", "HARD_SWISH", "activation", "f32"))
    assert found.findings == ("1 HARD_SWISH not fused",)
    assert found.summary().endswith("the runtime reports no times")
    assert found.rows()[0][4:6] == ("", "")


def test_an_inspection_survives_json():
    found = inspection(layer("Conv"), Layer("b", "Add", "arithmetic", parts=("x", "y")), fuses="nothing")
    assert Inspection.from_json(json.loads(json.dumps(found.to_json()))) == found
    bad = found.to_json()
    bad["layers"][0]["role"] = "boss"
    with pytest.raises(ValueError, match=r"layers\[0\].role is 'boss', expected one of kernel, "):
        Inspection.from_json(bad)


def test_a_typical_time_forgets_the_slowest_quarter():
    assert typical_time([3.0, 1.0, 2.0, 900.0]) == 2.0
    assert typical_time([7.0]) == 7.0
