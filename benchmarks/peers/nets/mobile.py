"""Networks of inverted bottlenecks: MobileNetV2 (arXiv 1801.04381), V3 (1905.02244), EfficientNet-Lite0."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class ConvBatchNorm(nn.Sequential):
    """Convolution, batch norm, activation."""

    def __init__(
        self, cin: int, cout: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: str = "relu6"
    ) -> None:
        acts = {"relu6": nn.ReLU6, "relu": nn.ReLU, "hardswish": nn.Hardswish, "": nn.Identity}
        conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(cout), acts[act]())


class _ChannelGate(nn.Module):
    """Squeeze and excitation (arXiv 1709.01507): a factor for each channel, with a hard sigmoid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(8, channels // 4)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.down, self.up = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)
        self.relu, self.gate = nn.ReLU(), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Scale [N, C, H, W] by channel."""
        gate: Tensor = self.gate(self.up(self.relu(self.down(self.pool(x)))))
        return x * gate


class Inverted(nn.Module):
    """An inverted bottleneck: 1x1 convolution to ``wide`` channels, depthwise convolution, linear 1x1 convolution."""

    def __init__(
        self, cin: int, wide: int, cout: int, kernel: int, stride: int, act: str, squeeze: bool = False
    ) -> None:
        super().__init__()
        self.expand = ConvBatchNorm(cin, wide, act=act) if wide != cin else nn.Identity()
        self.depthwise = ConvBatchNorm(wide, wide, kernel, stride, wide, act)
        self.squeeze = _ChannelGate(wide) if squeeze else nn.Identity()
        self.project = ConvBatchNorm(wide, cout, act="")
        self.residual = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, cout, H/stride, W/stride] from [N, cin, H, W]."""
        y: Tensor = self.project(self.squeeze(self.depthwise(self.expand(x))))
        return x + y if self.residual else y


class _Mobile(nn.Module):
    """Stem of stride 2, the blocks, a last 1x1 convolution, mean, classifier of 1,000 classes."""

    def __init__(self, blocks: Sequence[nn.Module], stem: int, cout: int, head: int, act: str, hidden: int = 0) -> None:
        super().__init__()
        self.features = nn.Sequential(
            ConvBatchNorm(3, stem, 3, 2, act=act), *blocks, ConvBatchNorm(cout, head, act=act)
        )
        self.pool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.hidden = nn.Sequential(nn.Linear(head, hidden), nn.Hardswish()) if hidden else nn.Identity()
        self.classifier = nn.Linear(hidden or head, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, 1000] from [N, 3, H, W]."""
        scores: Tensor = self.classifier(self.hidden(self.flatten(self.pool(self.features(x)))))
        return scores


def mobilenet_v2() -> nn.Module:
    """Return MobileNetV2: 3.5 M parameters, ReLU6."""
    stages = [(1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 32, 3, 2, 3), (6, 64, 4, 2, 3)]
    stages += [(6, 96, 3, 1, 3), (6, 160, 3, 2, 3), (6, 320, 1, 1, 3)]
    return _Mobile(_stages(stages), 32, 320, 1280, "relu6")


def efficientnet_lite0() -> nn.Module:
    """Return EfficientNet-Lite0: 4.7 M parameters, ReLU6, kernels of 3 and 5, no squeeze-excite."""
    stages = [(1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3)]
    stages += [(6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)]
    return _Mobile(_stages(stages), 32, 320, 1280, "relu6")


def mobilenet_v3() -> nn.Module:
    """Return the large MobileNetV3: 5.5 M parameters, hard swish, squeeze-excite with a hard sigmoid."""
    rows = [
        *((16, 16, 3, 1, "relu", False), (64, 24, 3, 2, "relu", False), (72, 24, 3, 1, "relu", False)),
        *((72, 40, 5, 2, "relu", True), (120, 40, 5, 1, "relu", True), (120, 40, 5, 1, "relu", True)),
        *((240, 80, 3, 2, "hardswish", False), (200, 80, 3, 1, "hardswish", False)),
        *((184, 80, 3, 1, "hardswish", False), (184, 80, 3, 1, "hardswish", False)),
        *((480, 112, 3, 1, "hardswish", True), (672, 112, 3, 1, "hardswish", True)),
        *((672, 160, 5, 2, "hardswish", True), (960, 160, 5, 1, "hardswish", True)),
        (960, 160, 5, 1, "hardswish", True),
    ]
    cin, blocks = 16, list[nn.Module]()
    for wide, cout, kernel, stride, act, squeeze in rows:
        blocks.append(Inverted(cin, wide, cout, kernel, stride, act, squeeze))
        cin = cout
    return _Mobile(blocks, 16, 160, 960, "hardswish", 1280)


def _stages(stages: Sequence[tuple[int, int, int, int, int]]) -> list[nn.Module]:
    """Return the blocks of stages, each (expansion, channels, blocks, stride of the first block, kernel)."""
    cin, blocks = 32, list[nn.Module]()
    for expansion, cout, count, stride, kernel in stages:
        for index in range(count):
            blocks.append(Inverted(cin, cin * expansion, cout, kernel, stride if index == 0 else 1, "relu6"))
            cin = cout
    return blocks
