"""Fused inverted bottleneck (EfficientNetV2, arXiv 2104.00298): one dense convolution expands, a 1x1 projects."""

from __future__ import annotations

from torch import Tensor, nn

from hnas.ops.conv import BatchNorm, Conv2d, ConvNorm, round8


class FusedConv(nn.Module):
    """k x k convolution [cin -> round8(cin * expansion)], activation, 1x1 projection to ``cout``, norm."""

    def __init__(self, cin: int, cout: int, stride: int, kernel: int, expansion: float, act: str) -> None:
        super().__init__()
        hidden = round8(cin * expansion)
        self.expand = ConvNorm(cin, hidden, kernel, stride, act=act)
        self.project = Conv2d(hidden, cout, 1, bias=False)
        self.out = BatchNorm(cout)

    def forward(self, x: Tensor) -> Tensor:
        """[N, cin, H, W] -> [N, cout, H/stride, W/stride]."""
        y: Tensor = self.out(self.project(self.expand(x)))
        return y


build = FusedConv
