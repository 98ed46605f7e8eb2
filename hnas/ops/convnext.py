"""ConvNeXt block (arXiv 2201.03545); its default norm can be fused."""

from __future__ import annotations

from torch import Tensor, nn

from hnas.ops.conv import NORMS, BatchNorm, Conv2d, activation, round8


class ConvNeXt(nn.Module):
    """k x k depthwise convolution, norm, pointwise MLP of ``expansion``, norm.

    ``norm="layer"`` is that of the paper. ``norm="batch"`` is fused in export and fast in CPU runtimes. The last norm
    replaces the layer scale of the paper.
    """

    def __init__(
        self, cin: int, cout: int, stride: int, kernel: int, expansion: float, act: str, norm: str = "batch"
    ) -> None:
        super().__init__()
        hidden = round8(cin * expansion)
        self.depthwise = Conv2d(cin, cin, kernel, stride, kernel // 2, groups=cin, bias=False)
        self.norm = NORMS[norm](cin)
        self.expand = Conv2d(cin, hidden, 1)
        self.act = activation(act)
        self.project = Conv2d(hidden, cout, 1, bias=False)
        self.out = BatchNorm(cout)

    def forward(self, x: Tensor) -> Tensor:
        """[N, cin, H, W] -> [N, cout, H/stride, W/stride]."""
        y: Tensor = self.out(self.project(self.act(self.expand(self.norm(self.depthwise(x))))))
        return y


build = ConvNeXt
