"""Attention and MLP in parallel (arXiv 2302.05442) over the positions of a small map.

Batch norms replace layer norms and fold into the projections (as in LeViT, arXiv 2104.01136). A depthwise convolution
of the values encodes the position (as in CSWin's LePE, arXiv 2107.00652), so that the block works at any resolution.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from hnas.ops.conv import BatchNorm, Conv2d, ConvNorm, round8

HEAD = 16  # channels of a head; constant, so that fewer heads are a leading slice


class Attention(nn.Module):
    """[N, C, H, W] -> [N, C, H, W]: multi-head attention over H * W tokens plus a pointwise MLP, then norm."""

    def __init__(self, cin: int, cout: int, stride: int, heads: int, expansion: float, act: str) -> None:
        super().__init__()
        if stride != 1:
            raise ValueError(f"attention keeps the map's size; stride {stride} is not possible")
        self.heads = heads
        inner = heads * HEAD
        self.query = ConvNorm(cin, inner)
        self.key = ConvNorm(cin, inner)
        self.value = ConvNorm(cin, inner)
        self.position = Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.project = Conv2d(inner, cout, 1, bias=False)
        hidden = round8(cin * expansion)
        self.expand = ConvNorm(cin, hidden, act=act)
        self.contract = Conv2d(hidden, cout, 1, bias=False)
        self.out = BatchNorm(cout)

    def forward(self, x: Tensor) -> Tensor:
        """[N, cin, H, W] -> [N, cout, H, W]."""
        n, _, h, w = x.shape
        values = self.value(x)
        tokens = [t.reshape(n, self.heads, HEAD, h * w).transpose(2, 3) for t in (self.query(x), self.key(x), values)]
        mixed = F.scaled_dot_product_attention(*tokens).transpose(2, 3).reshape(n, self.heads * HEAD, h, w)
        y: Tensor = self.out(self.project(mixed + self.position(values)) + self.contract(self.expand(x)))
        return y


build = Attention
