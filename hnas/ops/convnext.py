"""ConvNeXt block (arXiv 2201.03545) with a foldable norm by default."""

from __future__ import annotations

from torch import Tensor, nn

from hnas.ops.conv import NORMS, BatchNorm, Conv2d, activation, round8


class ConvNeXt(nn.Module):
    """k x k depthwise convolution, norm, pointwise MLP of ``expansion``, norm.

    ``norm="layer"`` is the paper's; ``"batch"`` folds away in export and has no cliff on CPU runtimes. The last
    norm takes the place of the paper's layer scale.
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
