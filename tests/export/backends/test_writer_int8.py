"""Test the TFLite emitter in int8: which operators are quantised, at which scales, and with which loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hnas.export.backends.artifacts import make_artifact
from hnas.export.backends.tflite import convert as tflite
from hnas.export.backends.tflite import litert
from hnas.export.backends.tflite import writer as emitter
from hnas.export.backends.tflite.writer.int8 import quantise_operators, scale_of
from hnas.export.backends.tflite.writer.model import Model, Operator
from hnas.export.device.artifact import Artifact
from hnas.export.graph.fusion import fuse
from hnas.export.graph.program import Program, capture
from hnas.export.int8.calibration import activation_ranges
from hnas.export.proof.verification import check
from tests.conftest import need
from tests.export import nets
from tests.export.backends.test_writer import DEVICE, IMAGE, Of, calls, compiled, program


@pytest.fixture(autouse=True)
def runtime() -> None:
    need("tflite", tflite.missing())
    torch.set_num_threads(1)


def lowered(source: Program, **leave: frozenset[str]) -> Model:
    whole = emitter.prepare(source)
    model = emitter.lower(whole, activation_ranges(whole, calls(source, 8)))
    quantise_operators(model, **leave)
    return model


def typed(model: Model) -> list[str]:
    """Return the kinds of operators, with an 8 after those whose output is int8."""
    return [f"{op.kind}{'8' if op.output[0].dtype == 'int8' else ''}" for op in model.operators]


def only(model: Model, kind: str) -> Operator:
    (found,) = [operator for operator in model.operators if operator.kind == kind]
    return found


def test_ends_are_float_and_what_lies_between_is_int8() -> None:
    net = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 1))
    assert typed(lowered(program(net, IMAGE))) == [
        *("QUANTIZE8", "CONV_2D8", "MAX_POOL_2D8", "CONV_2D8", "TRANSPOSE8", "DEQUANTIZE"),
    ]


def test_what_has_no_kernel_in_int8_stays_float() -> None:
    net = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Hardswish(), nn.Conv2d(8, 8, 1), nn.GELU(), nn.Conv2d(8, 8, 1))
    made = typed(lowered(program(net, IMAGE)))
    assert "HARD_SWISH" in made
    assert "GELU" in made
    assert made.count("CONV_2D8") == 3
    net = nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    normed = typed(lowered(program(net, (2, 5, 16))))
    assert {"MEAN", "SUB", "SQUARE", "ADD", "RSQRT", "MUL"} <= set(normed)
    assert normed.count("FULLY_CONNECTED8") == 2
    assert normed[-1] == "FULLY_CONNECTED"  # a small last one
    attention = typed(lowered(fuse(capture(*nets.build("hybrid")))))
    assert {"SOFTMAX", "BATCH_MATMUL"} <= set(attention)


def test_weights_have_a_scale_for_each_channel_and_biases_that_of_the_sum() -> None:
    source = program(nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU()), IMAGE)
    conv = only(lowered(source), "CONV_2D")
    x, weight, bias = conv.inputs
    assert x is not None and weight is not None and bias is not None  # noqa: PT018  # for the type checker
    assert (weight.dtype, bias.dtype) == ("int8", "int32")
    assert weight.scale is not None and x.scale is not None and bias.scale is not None  # noqa: PT018
    original = dict(source.module.named_parameters())["0.weight"].permute(0, 2, 3, 1).numpy()
    steps = weight.scale.scale.reshape(-1, 1, 1, 1)
    assert (np.abs(weight.data * steps - original) <= 0.51 * steps).all()
    assert np.abs(weight.data).max(axis=(1, 2, 3)).tolist() == [127] * 8
    assert np.allclose(bias.scale.scale, weight.scale.scale * x.scale.scale)


def test_a_scale_covers_what_was_seen_and_zero() -> None:
    for seen, zero in (((0.0, 6.0), -128), ((-3.0, 0.0), 127), ((2.0, 4.0), -128), ((-1.0, 1.0), 0)):
        found = scale_of(seen)
        ends = [found.scale[0] * (number - found.zero) for number in (-128, 127)]
        assert abs(found.zero - zero) <= 1
        assert ends[0] <= min(seen[0], 0) + found.scale[0]
        assert ends[1] >= max(seen[1], 0) - found.scale[0]
    assert scale_of((0.0, 0.0)).scale[0] > 0


def test_parts_that_are_joined_are_computed_at_one_scale() -> None:
    layers = {"a": nn.Conv2d(4, 4, 1), "b": nn.Conv2d(4, 4, 1), "c": nn.Conv2d(8, 4, 1)}
    source = program(Of(lambda x, a, b, c: c(torch.cat([a(x), 5 * b(x)], 1)), **layers), IMAGE)
    model = lowered(source)
    joined = only(model, "CONCATENATION")
    assert len({float(value.scale.scale[0]) for value in (*joined.activations, *joined.output)}) == 1
    assert typed(model).count("QUANTIZE8") == 1  # the input's


def test_a_part_that_is_constant_is_joined_at_the_same_scale(tmp_path: Path) -> None:
    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.after = nn.Linear(8, 8), nn.Linear(8, 600)
            self.token = nn.Parameter(torch.full((1, 1, 8), 9.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.after(torch.cat((self.token, self.before(x)), 1))

    source = program(Token(), (1, 5, 8))
    joined = only(lowered(source), "CONCATENATION")
    constants = [value for value in joined.inputs if value is not None and value.data is not None]
    assert [value.dtype for value in (*constants, *joined.output)] == ["int8", "int8"]
    assert constants[0].scale == joined.output[0].scale
    made = compiled(source, tmp_path, "int8", 16)
    assert (made.notes["delegates"], made.notes["undelegated"]) == (1, 0)
    assert level(source, made, calls(source, 4, 2)) > 30


def test_sums_that_only_float_operators_read_stay_float() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 400)
            self.norm, self.end = nn.LayerNorm(16), nn.LayerNorm(16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            x = x + self.second(self.norm(x))
            return self.last(self.end(x))

    made = typed(lowered(program(Residual(), (2, 5, 16))))
    assert "ADD8" not in made
    assert made.count("FULLY_CONNECTED8") == 3
    convs = Of(lambda x, f, g: g(y := f(x)).relu() + y, f=nn.Conv2d(4, 8, 1), g=nn.Conv2d(8, 8, 1))
    assert "ADD8" in typed(lowered(program(nn.Sequential(convs, nn.Conv2d(8, 4, 1)), IMAGE)))


def test_a_norm_that_is_left_is_a_depthwise_convolution_and_a_rectifier_a_change_of_scale(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU(), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    assert "DEPTHWISE_CONV_2D8" in typed(lowered(program(net, IMAGE)))
    branch = Of(lambda x, f, g: (y := f(x)) + g(y.relu()), f=nn.Conv2d(4, 8, 1), g=nn.Conv2d(8, 8, 1))
    source = program(branch, IMAGE)
    assert typed(lowered(source)).count("QUANTIZE8") == 2
    assert level(source, compiled(source, tmp_path, "int8", 16), calls(source, 4, 2)) > 30


def test_an_average_over_a_window_is_a_convolution() -> None:
    net = nn.Sequential(nn.Conv2d(4, 8, 1), nn.AvgPool2d(2), nn.Conv2d(8, 4, 1))
    assert "AVERAGE_POOL_2D" not in typed(lowered(program(net, IMAGE)))


def test_a_hard_sigmoid_is_its_convolution(tmp_path: Path) -> None:
    net = Of(lambda x, f, g: g(x * nn.functional.hardsigmoid(4 * f(x))), f=nn.Conv2d(4, 4, 1), g=nn.Conv2d(4, 8, 1))
    source = program(net, IMAGE)
    made = typed(lowered(source))
    assert [kind for kind in made if "CONV" in kind or "MUL" in kind] == ["CONV_2D8", "MUL8", "CONV_2D8"]
    assert level(source, compiled(source, tmp_path, "int8", 16), calls(source, 4, 2)) > 30
    assert "RELU6" not in made


def test_what_is_left_out_stays_float() -> None:
    net = Of(lambda x, f, g: f(x).relu() + g(x), f=nn.Conv2d(4, 8, 1), g=nn.Conv2d(4, 8, 1))
    assert "ADD8" in typed(lowered(program(net, IMAGE)))
    assert "ADD8" not in typed(lowered(program(net, IMAGE), leave=frozenset({"ADD"})))


def test_sums_of_scales_that_are_too_far_apart_stay_float(tmp_path: Path) -> None:
    layers = {"f": nn.Conv2d(4, 8, 1), "g": nn.Conv2d(4, 8, 1)}
    source = program(Of(lambda x, f, g: f(x).sigmoid() + 1e5 * g(x).sigmoid(), **layers), IMAGE)
    assert "ADD8" not in typed(lowered(source))
    assert compiled(source, tmp_path, "int8").notes["delegates"] == 1


def test_dead_channels_and_values_that_are_always_zero(tmp_path: Path) -> None:
    conv, last = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1)
    source = program(nn.Sequential(conv, nn.ReLU(), last), IMAGE)
    state = dict(source.module.named_parameters())
    with torch.no_grad():
        state["0.weight"][::2] = 0
        state["0.bias"][:] = -1e6
    made = compiled(source, tmp_path, "int8")
    assert level(source, made, calls(source, 2, 2)) > 30


def level(source: Program, made: Artifact, evidence: list[tuple[np.ndarray, ...]]) -> float:
    runner = tflite.load(made)
    return check([source.arrays(*x) for x in evidence], [runner(*x) for x in evidence], made.precision).sqnr_db


@pytest.mark.slow
@pytest.mark.parametrize("name", nets.SHAPES)
def test_as_faithful_as_the_converters_quantiser(name: str, tmp_path: Path) -> None:
    """Both quantisers use the same data and the same minimum and maximum."""
    pytest.importorskip("ai_edge_quantizer")
    from tests.export.backends.test_backends import images

    source = fuse(capture(*nets.build(name)))
    data, evidence = images(source, 1, 32), images(source, 2, 16)
    ours = tmp_path / "ours"
    ours.mkdir()
    made = make_artifact("tflite", source, ours, precision="int8", device=DEVICE, calibration=data)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    litert.convert_program(source, tmp_path / "float.tflite", made.notes["layout"])
    laid = [tflite.to_runtime(sample, made.notes["layout"]) for sample in data]
    litert.quantise_file(tmp_path / "float.tflite", theirs / "model.tflite", laid)
    peer = Artifact.read(theirs / "model.tflite")
    runner = tflite.load(peer)
    answers = [runner(*tflite.to_runtime(sample, made.notes["layout"])) for sample in evidence]
    found = check([source.arrays(*x) for x in evidence], answers, "int8")
    assert level(source, made, evidence) >= found.sqnr_db - 0.1  # rounding
