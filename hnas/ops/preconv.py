"""Activation, convolution, norm: the convolution of cell spaces (NAS-Bench-201, arXiv 2001.00326, section 2.1)."""

from __future__ import annotations

from torch import Tensor, nn

from hnas.ops.conv import BatchNorm, Conv2d, activation


class PreConv(nn.Module):
    """Activation first, so that sums of branches stay linear; then k x k convolution and norm."""

    def __init__(self, cin: int, cout: int, stride: int, kernel: int, act: str) -> None:
        super().__init__()
        self.act = activation(act)
        self.conv = Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False)
        self.out = BatchNorm(cout)

    def forward(self, x: Tensor) -> Tensor:
        """[N, cin, H, W] -> [N, cout, H/stride, W/stride]."""
        y: Tensor = self.out(self.conv(self.act(x)))
        return y


build = PreConv
