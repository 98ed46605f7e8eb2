"""Average pooling over positions, 1x1 convolution over channels (after PoolFormer, arXiv 2111.11418)."""

from __future__ import annotations

from torch import Tensor, nn

from hnas.ops.avgpool import AveragePool
from hnas.ops.conv import BatchNorm, Conv2d, activation


class _PoolConv(nn.Module):
    """Activation, 3 x 3 average pooling, 1x1 convolution, norm."""

    def __init__(self, cin: int, cout: int, stride: int, act: str) -> None:
        super().__init__()
        self.act = activation(act)
        self.pool = AveragePool(cin, cin, stride)
        self.project = Conv2d(cin, cout, 1, bias=False)
        self.out = BatchNorm(cout)

    def forward(self, x: Tensor) -> Tensor:
        """[N, cin, H, W] -> [N, cout, H/stride, W/stride]."""
        y: Tensor = self.out(self.project(self.pool(self.act(x))))
        return y


build = _PoolConv
