"""Test that modules of other floats become programs in float32, and that a wrong conversion is caught."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from hnas.export.device.errors import ExportError
from hnas.export.graph import program as capturing
from hnas.export.graph.agreement import HALF_DB, SINGLE_DB, same_values
from hnas.export.graph.precision import in_float32
from hnas.export.graph.program import capture


class Inside(nn.Module):
    """Computes in half precision between a float32 input and a float32 output."""

    def __init__(self, net, dtype):
        super().__init__()
        self.net, self.dtype = net, dtype

    def forward(self, x):
        return self.net(x.to(self.dtype)).float()


def layers(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 4)).eval().to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("inside", [False, True])
def test_a_module_of_another_float_is_captured_in_float32(dtype, inside):
    net, x = layers(dtype), torch.randn(2, 6)
    state = copy.deepcopy(net.state_dict())
    program = capture(Inside(net, dtype), x) if inside else capture(net, x.to(dtype))
    name = str(dtype).removeprefix("torch.")
    assert program.remarks == (f"{name} parts are computed in float32",)
    assert program.halved == (dtype is not torch.float64)
    assert {tensor.dtype for side in program.signature for tensor in side} == {"float32"}
    assert not any("to" in target.split(".")[1:2] or "assert" in target for target in program.operators())
    expected = layers()
    expected.load_state_dict({key: value.float() for key, value in state.items()})  # as rounded
    torch.testing.assert_close(program(x)[0], expected(x))
    assert all(value.dtype is dtype for value in net.state_dict().values())  # the original is untouched


def test_a_float32_module_is_left_alone():
    program = capture(layers(), torch.randn(2, 6))
    assert program.remarks == ()
    assert not program.halved
    assert in_float32(program.module) == ()


def test_a_float64_output_becomes_float32():
    class Sum(nn.Module):
        def forward(self, x):
            return x.double().sum(-1), (x > 0).sum()

    program = capture(Sum(), torch.randn(2, 6))
    assert [tensor.dtype for tensor in program.signature[1]] == ["float32", "int64"]


def test_a_wrong_conversion_is_caught(monkeypatch):
    def wrong(module):
        found = in_float32(module)
        for value in module.state_dict().values():
            value.neg_()
        return found

    monkeypatch.setattr(capturing, "in_float32", wrong)
    with pytest.raises(ExportError, match="computes other values in float32 than in bfloat16"):
        capture(layers(torch.bfloat16), torch.randn(2, 6).bfloat16())


def test_values_are_compared_where_both_are_finite():
    half = np.array([1.0, np.inf], np.float16)
    assert same_values([half], [np.array([1.001, 70000.0])], HALF_DB)
    assert not same_values([half], [np.array([-1.0, 70000.0])], HALF_DB)
    assert not same_values([half], [np.array([1.0])], HALF_DB)
    assert not same_values([np.ones(4)], [np.full(4, 1.01)], SINGLE_DB)  # 40 dB


def test_an_output_of_rounding_errors_hides_no_later_output():
    faint, sound = (np.zeros(4), np.full(4, 1e-5)), (np.ones(4), np.full(4, 1.001))
    (zeros, errors), (ones, near) = faint, sound
    assert same_values([zeros, ones], [errors, near], HALF_DB)
    assert not same_values([zeros, ones], [errors, -near], HALF_DB)
    assert not same_values([zeros], [errors], SINGLE_DB)


def test_a_wrong_conversion_is_caught_in_every_output(monkeypatch):
    """The first output is a sum of zero: rounding errors alone."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(6))

        def forward(self, x):
            y = x * self.scale
            return (y - y.mean(-1, keepdim=True)).mean(-1), y

    def wrong(module):
        found = in_float32(module)
        module.scale.data.neg_()
        return found

    monkeypatch.setattr(capturing, "in_float32", wrong)
    with pytest.raises(ExportError, match="computes other values in float32 than in float16"):
        capture(Two().half(), torch.linspace(-1, 2, 12).reshape(2, 6).half())
