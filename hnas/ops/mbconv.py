"""Inverted bottleneck (MobileNetV2, arXiv 1801.04381), squeeze-excite as an option (MobileNetV3, arXiv 1905.02244)."""

from __future__ import annotations

from torch import Tensor, nn

from hnas.ops.conv import BatchNorm, Conv2d, ConvNorm, SqueezeExcite, round8


class MBConv(nn.Module):
    """1x1 expansion, k x k depthwise convolution, 1x1 projection, norm."""

    def __init__(
        self, cin: int, cout: int, stride: int, kernel: int, expansion: float, act: str, squeeze: bool = False
    ) -> None:
        super().__init__()
        hidden = round8(cin * expansion)
        self.expand = ConvNorm(cin, hidden, act=act)
        self.depthwise = ConvNorm(hidden, hidden, kernel, stride, groups=hidden, act=act)
        self.squeeze = SqueezeExcite(hidden) if squeeze else None
        self.project = Conv2d(hidden, cout, 1, bias=False)
        self.out = BatchNorm(cout)

    def forward(self, x: Tensor) -> Tensor:
        """[N, cin, H, W] -> [N, cout, H/stride, W/stride]."""
        x = self.depthwise(self.expand(x))
        if self.squeeze is not None:
            x = self.squeeze(x)
        y: Tensor = self.out(self.project(x))
        return y


build = MBConv
