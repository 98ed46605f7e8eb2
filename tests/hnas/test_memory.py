"""Memory orders that torch would not take by itself."""

import pytest
import torch
from torch.nn import functional as F

from hnas.memory import channels_last, reuse_memory


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
