"""Memory orders that torch does not choose by itself."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hnas.memory import channels_last, reuse_memory
from hnas.ops.conv import pooled


@pytest.mark.parametrize("channels", [1, 3])
def test_a_convolution_by_slices_of_weights_stays_channels_last(channels: int) -> None:
    x = torch.randn(2, channels, 8, 8)
    weight = torch.randn(16, channels, 5, 5).contiguous(memory_format=torch.channels_last)[:8, :, 1:4, 1:4]
    y = F.conv2d(channels_last(x), weight, padding=1)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert not y.is_contiguous()
    torch.testing.assert_close(y, F.conv2d(x, weight.contiguous(), padding=1))


def test_values_stay_whatever_order_comes_in() -> None:
    for x in (torch.randn(2, 1, 6, 8)[:, :, ::2], torch.randn(3, 4, 5, 6).permute(0, 2, 1, 3), torch.randn(1, 1, 1, 1)):
        assert torch.equal(channels_last(x), x)


def test_keeping_memory_changes_nothing_else() -> None:
    reuse_memory()
    assert float(torch.ones(1000, 1000).sum()) == 1e6


def test_pooling_in_training_has_the_same_values_and_a_channels_last_gradient() -> None:
    x = torch.randn(4, 6, 5, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    trained, evaluated = (pooled(torch.relu(x), training=training) for training in (True, False))
    torch.testing.assert_close(trained, evaluated)
    slopes = torch.randn(4, 6)
    grads = [torch.autograd.grad((output * slopes).sum(), x)[0] for output in (trained, evaluated)]
    torch.testing.assert_close(*grads)
    seen: list[Tensor] = []
    y = torch.relu(x)
    y.register_hook(seen.append)
    pooled(y, training=True).sum().backward()
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
