"""Test that updates by a mask become ``where``, and that other sizes that depend on values are one line."""

import pytest
import torch
from torch import nn

from hnas.export.device.errors import ExportError
from hnas.export.graph import masks
from hnas.export.graph.program import capture


class Apply(nn.Module):
    """A module of one function of a tensor and its copy."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x, x.clone())


def leaky(x, y):
    y = y * 2
    y[y < 0] *= 0.1
    return y


def one_value(x, y):
    y[x > 0.5] = -7.0
    return y


def copied(x, y):
    y, mask = torch.zeros_like(x), x > 0
    y[mask] = x[mask]
    return y


def two_sources(x, y):
    mask = x > 0
    y[mask] = torch.exp(x[mask]) + (x * 3)[mask] * 2
    return y


def mask_written_twice(x, y):
    y[x < 0] = x[x < 0].abs().clamp(max=1)
    return y


def whole_rows(x, y):
    y[x[:, 0, 0] > 0] = 0
    return y


def changed_rows(x, y):
    mask = x[..., 0] > 0
    y[mask] = y[mask] * 2
    return y


@pytest.mark.parametrize(
    "function", [leaky, one_value, copied, two_sources, mask_written_twice, whole_rows, changed_rows]
)
def test_cases_1_and_2_become_where(function):
    torch.manual_seed(0)
    program = capture(Apply(function), torch.randn(3, 4, 5))
    assert program.operators()["aten.where.self"] == 1
    assert "aten.index.Tensor" not in program.operators()
    for x in torch.randn(5, 3, 4, 5):  # other masks than that of the example
        torch.testing.assert_close(program(x)[0], function(x, x.clone()))


def other_mask(x, y):
    mask = (x > 0).flip(0)
    y[mask] = x[x > 0]
    return y


def not_elementwise(x, y):
    y[x > 0] = x[x > 0].cumsum(0)
    return y


REFUSED = {
    "another mask": other_mask,
    "no elementwise function": not_elementwise,
    "a selection": lambda x, y: x[x > 0].sum(),
    "an output": lambda x, y: torch.nonzero(x),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_case_3_is_one_line_with_operator_and_module(kind):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Identity(), Apply(REFUSED[kind])])

        def forward(self, x):
            return self.layers[1](x)

    x = torch.randn(4, 4)
    with pytest.raises(ExportError, match=r"the size of aten\.\w+\.\w+ in layers\.1 depends on values; ") as caught:
        capture(Net(), x)
    assert "\n" not in str(caught.value)


def test_random_masks_are_not_the_same_mask():
    def twice(x, y):
        y[torch.rand(4) < 2] = x[torch.rand(4) < 2] * 2
        return y

    with pytest.raises(ExportError, match="depends on values"):
        capture(Apply(twice), torch.randn(4))


def test_a_wrong_mask_would_be_seen(monkeypatch):
    monkeypatch.setattr(masks, "_same", lambda one, other: True)
    x = torch.tensor([[1.0, 1, -1, -1], [-1, -1, 1, 1]])
    program = capture(Apply(other_mask), x)
    assert not torch.equal(program(x)[0], other_mask(x, x.clone()))
