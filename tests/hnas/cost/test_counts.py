"""Counted costs against a count by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hnas.cost.counts import COUNTED, counted
from hnas.space import Choice, Space


class Two(nn.Module):
    """A convolution from 3 to 4 channels on 8 x 8 pixels, and a linear layer from 4 to 2."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.last = nn.Linear(4, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(F.relu(self.first(x)).mean((2, 3)))
        return y


def test_weights_macs_and_memory_are_those_of_a_count_by_hand():
    with torch.device("meta"):
        net = Two()
    space = Space("two", {}, {"c": Choice((0,))}, lambda _: net, lambda: net, lambda _: ((3, 8, 8),), lambda _: None)
    found = {name: cost(space.smallest) for name, cost in counted(space, lambda _: net).items()}
    assert tuple(found) == COUNTED
    weights = 3 * 4 * 9 + 4 * 2
    assert found["weights"].value == pytest.approx(weights / 1e6)
    assert found["macs"].value == pytest.approx((64 * 3 * 4 * 9 + 4 * 2) / 1e6)
    # The convolution reads 3 maps and writes 4; nothing else moves more.
    assert found["memory"].value == pytest.approx(4 * (weights + 7 * 64) / 1e6)
    assert [price.unit for price in found.values()] == ["million weights", "million MACs", "MB"]
