"""Depthwise and pointwise convolution (MobileNetV1, arXiv 1704.04861): MobileNetV2's block of expansion 1."""

from __future__ import annotations

from torch import Tensor, nn

from hnas.ops.conv import BatchNorm, Conv2d, ConvNorm


class _Separable(nn.Module):
    """k x k depthwise convolution, norm, activation, 1x1 projection, norm."""

    def __init__(self, cin: int, cout: int, stride: int, kernel: int, act: str) -> None:
        super().__init__()
        self.depthwise = ConvNorm(cin, cin, kernel, stride, groups=cin, act=act)
        self.project = Conv2d(cin, cout, 1, bias=False)
        self.out = BatchNorm(cout)

    def forward(self, x: Tensor) -> Tensor:
        """[N, cin, H, W] -> [N, cout, H/stride, W/stride]."""
        y: Tensor = self.out(self.project(self.depthwise(x)))
        return y


build = _Separable
