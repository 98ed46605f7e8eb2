"""Networks of inverted residuals (MobileNetV2, EfficientNet-Lite, MnasNet) with elastic depth, expansion and kernel.

The largest member is the published network, so that its pretrained weights are weights of the supernet
(``hnas.training.pretrained``). The smaller members are slices of it, as in Once-for-All (arXiv 1908.09791).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hnas.ops.conv import BatchNorm, Conv2d, ConvNorm, activation, round8
from hnas.space import Arch, Choice, Shape, Space
from hnas.spaces.hybrid_vision import HybridVision, Stage, as_lists, initialise

# Kernel, expanded channels (0: no expansion), output channels and stride of each block, by stage: EfficientNet-Lite0.
LITE0 = (
    ((3, 0, 16, 1),),
    ((3, 96, 24, 2), (3, 144, 24, 1)),
    ((5, 144, 40, 2), (5, 240, 40, 1)),
    ((3, 240, 80, 2), (3, 480, 80, 1), (3, 480, 80, 1)),
    ((5, 480, 112, 1), (5, 672, 112, 1), (5, 672, 112, 1)),
    ((5, 672, 192, 2), (5, 1152, 192, 1), (5, 1152, 192, 1), (5, 1152, 192, 1)),
    ((3, 1152, 320, 1),),
)


class InvertedResidual(nn.Module):
    """Expansion (unless ``hidden`` is 0), depthwise convolution, projection; the input is added where shapes match."""

    def __init__(self, cin: int, cout: int, stride: int, kernel: int, hidden: int, act: str) -> None:
        super().__init__()
        self.residual = stride == 1 and cin == cout
        self.expand = ConvNorm(cin, hidden, act=act) if hidden else None
        inner = hidden or cin
        self.depthwise = ConvNorm(inner, inner, kernel, stride, groups=inner, act=act)
        self.project = Conv2d(inner, cout, 1, bias=False)
        self.out = BatchNorm(cout)

    def forward(self, x: Tensor) -> Tensor:
        """[N, cin, H, W] -> [N, cout, H/stride, W/stride]."""
        inner = x if self.expand is None else self.expand(x)
        y: Tensor = self.out(self.project(self.depthwise(inner)))
        return x + y if self.residual else y


def inverted_residuals(
    classes: int = 10,
    channels: int = 3,
    resolutions: Sequence[int] = (48, 64),
    stem: int = 32,
    stages: Sequence[Sequence[Sequence[int]]] = LITE0,
    head: int = 1280,
    act: str = "relu6",
    eps: float = 1e-3,
    expansions: Sequence[float] = (0.5, 0.75, 1.0),
    kernels: Sequence[int] = (3, 5, 7),
) -> Space:
    """Return a space whose largest member is the network of ``stages``; the default is EfficientNet-Lite0.

    classes: number of classes.
    channels: 1 (grey) or 3 (RGB).
    resolutions: possible heights and widths of the input, in pixels.
    stem: channels of the first convolution, which has stride 2.
    stages: for each stage its blocks: kernel, expanded channels (0: no expansion), output channels, stride.
    head: channels of the last convolution.
    act: activation.
    eps: added to the variance by each batch norm.
    expansions: possible shares of the expanded channels of each block, the last one 1.
    kernels: smaller kernels that a block may have in place of its own.

    A stage can lose up to half of its blocks. All members have the widths of the network.

    Raises:
        ValueError: a block after the first of its stage changes the shape, or the last share is not 1.
    """
    arguments = {name: as_lists(value) for name, value in locals().items()}
    activation(act)
    _check(stages, expansions)
    choices = {"resolution": Choice(tuple(resolutions))}
    for s, rows in enumerate(stages):
        if len(rows) > 1:
            choices[f"stages.{s}.depth"] = Choice(tuple(range((len(rows) + 1) // 2, len(rows) + 1)))
        for b, (kernel, hidden, _, _) in enumerate(rows):
            deep = tuple(d for d in range((len(rows) + 1) // 2, len(rows) + 1) if d > b)
            when = (f"stages.{s}.depth", deep) if b >= (len(rows) + 1) // 2 else None
            sizes = [k for k in kernels if k < kernel]
            if sizes:
                choices[f"stages.{s}.blocks.{b}.kernel"] = Choice((*sizes, kernel), when)
            if hidden and len(expansions) > 1:
                choices[f"stages.{s}.blocks.{b}.expansion"] = Choice(tuple(expansions), when)

    def build(arch: Mapping[str, Any]) -> nn.Module:
        cin, made = stem, []
        for s, rows in enumerate(stages):
            blocks = []
            for b, (kernel, hidden, cout, stride) in enumerate(rows[: arch.get(f"stages.{s}.depth", len(rows))]):
                path = f"stages.{s}.blocks.{b}"
                share = arch.get(f"{path}.expansion", 1)
                inner = hidden if share == 1 or not hidden else min(hidden, round8(hidden * share))
                blocks.append(InvertedResidual(cin, cout, stride, arch.get(f"{path}.kernel", kernel), inner, act))
                cin = cout
            made.append(Stage(blocks))
        net = HybridVision(ConvNorm(channels, stem, 3, 2, act=act), made, cin, head, classes, act)
        for module in net.modules():
            if isinstance(module, BatchNorm):
                module.eps = eps
        return net

    def example(arch: Arch) -> tuple[Shape, ...]:
        side = int(str(arch["resolution"]))
        return ((channels, side, side),)

    return Space("inverted_residuals", arguments, choices, build, lambda: build({}), example, _prepare)


def _prepare(net: nn.Module) -> None:
    """Draw the weights; a residual block begins as the identity."""
    initialise(net)
    for module in net.modules():
        if isinstance(module, InvertedResidual) and module.residual:
            torch.nn.init.zeros_(module.out.weight)


def _check(stages: Sequence[Sequence[Sequence[int]]], expansions: Sequence[float]) -> None:
    if not stages or any(not rows or any(len(row) != 4 for row in rows) for rows in stages):
        raise ValueError("each of stages is a list of blocks: kernel, expanded channels, output channels, stride")
    if any(stride != 1 or cout != rows[0][2] for rows in stages for _, _, cout, stride in rows[1:]):
        raise ValueError("a block after the first one of its stage changes the shape; begin a new stage with it")
    if list(expansions) != sorted(expansions) or expansions[-1] != 1 or expansions[0] <= 0:
        raise ValueError(f"expansions are shares from smallest to 1; got {list(expansions)}")
