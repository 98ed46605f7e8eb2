"""Test that what torch.onnx does not export is rewritten, with equal values."""

import pytest
import torch
from torch import nn

from hnas.export.graph.program import capture
from hnas.export.onnx.fixes import flatten_attention


class Attention(nn.Module):
    def forward(self, x):
        return nn.functional.scaled_dot_product_attention(x, x.sin(), x.cos(), scale=0.4)


@pytest.mark.parametrize("shape", [(2, 5, 8), (1, 2, 3, 5, 8), (5, 8)])
def test_attention_gets_four_dimensions(shape):
    torch.manual_seed(0)
    x = torch.randn(shape)
    program = flatten_attention(capture(Attention(), x))
    assert program.fired[-1] == ("flatten_attention", 1)
    (node,) = (node for node in program.module.graph.nodes if "attention" in str(node.target))
    assert node.meta["val"].ndim == 4
    torch.testing.assert_close(program(x)[0], Attention()(x))


def test_attention_of_four_dimensions_is_unchanged():
    assert flatten_attention(capture(Attention(), torch.randn(1, 2, 5, 8))).fired[-1] == ("flatten_attention", 0)
