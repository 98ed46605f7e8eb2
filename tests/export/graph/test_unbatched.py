"""Test that layers without a batch axis get one, and compute the same."""

import pytest
import torch
from torch import nn

from hnas.export.graph import program as capturing
from hnas.export.graph.program import capture

LAYERS = {
    "conv1d": (nn.Conv1d(3, 4, 3), (3, 8)),
    "conv2d": (nn.Conv2d(3, 4, 3, padding="same"), (3, 8, 8)),
    "conv3d": (nn.Conv3d(3, 4, 2), (3, 4, 4, 4)),
    "conv_transpose2d": (nn.ConvTranspose2d(3, 4, 2), (3, 5, 5)),
    "max_pool2d": (nn.MaxPool2d(2), (3, 6, 6)),
    "avg_pool1d": (nn.AvgPool1d(2), (3, 6)),
    "adaptive_avg_pool2d": (nn.AdaptiveAvgPool2d(2), (3, 6, 6)),
}


def ranks(program, name):
    return [node.args[0].meta["val"].ndim for node in program.module.graph.nodes if name in str(node.target)]


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_gets_a_batch_axis(name):
    net, shape = LAYERS[name]
    program = capture(net, torch.randn(shape))
    x = torch.randn(shape)
    torch.testing.assert_close(program(x)[0], net(x))
    assert ranks(program, name.partition("_transpose")[0]) == [len(shape) + 1]


def test_without_it_the_layer_has_none(monkeypatch):
    monkeypatch.setattr(capturing, "add_batch_axes", lambda module: None)
    net, shape = LAYERS["conv2d"]
    assert ranks(capture(net, torch.randn(shape)), "conv2d") == [len(shape)]


def test_a_batched_layer_is_left_alone():
    program = capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.randn(1, 3, 8, 8))
    assert list(program.operators()) == ["aten.conv2d.default", "aten.relu.default"]
