"""A hand-designed network like MobileNetV3 (arXiv 1905.02244), as a space of one member: a baseline for comparisons.

Bottlenecks with 3 x 3 and 5 x 5 depthwise kernels. Squeeze-excite and hard-swish are in the same layers as in
MobileNetV3-Small. Strides and widths are smaller, for small images.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hnas.ops.conv import ConvNorm, SqueezeExcite, activation, pooled, round8
from hnas.space import Arch, Shape, Space
from hnas.spaces.hybrid_vision import initialise

# Kernel, expanded channels, output channels, squeeze-excite, activation, stride: table 2 of MobileNetV3-Small from its
# second row. The first reductions are left out, because the images are small.
_ROWS = (
    (3, 16, 16, True, "relu", 1),
    (3, 72, 24, False, "relu", 2),
    (3, 88, 24, False, "relu", 1),
    (5, 96, 40, True, "hardswish", 2),
    (5, 240, 40, True, "hardswish", 1),
    (5, 240, 40, True, "hardswish", 1),
    (5, 120, 48, True, "hardswish", 1),
    (5, 144, 48, True, "hardswish", 1),
    (5, 288, 96, True, "hardswish", 2),
    (5, 576, 96, True, "hardswish", 1),
    (5, 576, 96, True, "hardswish", 1),
)


class _Bottleneck(nn.Module):
    """Expansion, depthwise convolution, squeeze-excite, projection; residual where shapes match."""

    def __init__(self, cin: int, kernel: int, hidden: int, cout: int, squeeze: bool, act: str, stride: int) -> None:
        super().__init__()
        self.residual = stride == 1 and cin == cout
        self.expand = ConvNorm(cin, hidden, act=act)
        self.depthwise = ConvNorm(hidden, hidden, kernel, stride, groups=hidden, act=act)
        self.squeeze = SqueezeExcite(hidden) if squeeze else nn.Identity()
        self.project = ConvNorm(hidden, cout)

    def forward(self, x: Tensor) -> Tensor:
        """[N, cin, H, W] -> [N, cout, H/stride, W/stride]."""
        y: Tensor = self.project(self.squeeze(self.depthwise(self.expand(x))))
        return x + y if self.residual else y


class MobileNetV3(nn.Module):
    """[N, channels, H, W] -> class scores [N, classes]."""

    def __init__(self, classes: int, channels: int, width: float) -> None:
        super().__init__()
        cin = round8(16 * width)
        self.stem = ConvNorm(channels, cin, 3, 1, act="hardswish")
        blocks = []
        for kernel, hidden, cout, squeeze, act, stride in _ROWS:
            cout = round8(cout * width)
            blocks.append(_Bottleneck(cin, kernel, round8(hidden * width), cout, squeeze, act, stride))
            cin = cout
        self.blocks = nn.Sequential(*blocks)
        hidden = round8(576 * width)
        self.last = ConvNorm(cin, hidden, act="hardswish")
        self.hidden = nn.Linear(hidden, round8(1024 * width))
        self.act = activation("hardswish")
        self.classifier = nn.Linear(round8(1024 * width), classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the class scores of images."""
        x = pooled(self.last(self.blocks(self.stem(x))), training=self.training)
        scores: Tensor = self.classifier(self.act(self.hidden(x)))
        return scores


def mobilenetv3(classes: int = 10, channels: int = 1, resolution: int = 28, width: float = 0.5) -> Space:
    """Return the space of the network.

    classes: number of classes.
    channels: 1 (grey) or 3 (RGB).
    resolution: height and width of the images.
    width: factor of all channels.
    """
    arguments = dict(locals())

    def build(_: Any = None) -> nn.Module:
        return MobileNetV3(classes, channels, width)

    def example(_: Arch) -> tuple[Shape, ...]:
        return ((channels, resolution, resolution),)

    def prepare(net: nn.Module) -> None:
        initialise(net)
        for module in net.modules():
            if isinstance(module, _Bottleneck) and module.residual:
                torch.nn.init.zeros_(module.project.norm.weight)

    return Space("mobilenetv3", arguments, {}, build, build, example, prepare)
