"""Networks of plain convolutions: ResNet-18 (arXiv 1512.03385), ConvNeXt (2201.03545), U-Net (1505.04597)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hnas.benchmarks.peers.nets.mobile import ConvBatchNorm, Inverted


class _Basic(nn.Module):
    """A basic block: two 3x3 convolutions and a residual."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = ConvBatchNorm(cin, cout, 3, stride, act="relu"), ConvBatchNorm(cout, cout, 3, act="")
        self.residual = stride == 1 and cin == cout
        self.short = nn.Identity() if self.residual else ConvBatchNorm(cin, cout, 1, stride, act="")

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, cout, H/stride, W/stride] from [N, cin, H, W]."""
        return torch.relu(self.second(self.first(x)) + self.short(x))


class ResNet18(nn.Module):
    """ResNet-18: 11.7 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvBatchNorm(3, 64, 7, 2, act="relu"), nn.MaxPool2d(3, 2, 1))
        widths = (64, 64, 64, 128, 128, 256, 256, 512, 512)
        pairs = pairwise(widths)
        self.blocks = nn.Sequential(*(_Basic(cin, cout, 1 if cin == cout else 2) for cin, cout in pairs))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, 1000] from [N, 3, H, W]."""
        scores: Tensor = self.head(self.blocks(self.stem(x)))
        return scores


class _ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of [N, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to the same shape."""
        normed: Tensor = super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return normed


class _ConvNeXtBlock(nn.Module):
    """7x7 depthwise convolution, layer norm, two linear layers with a GELU, layer scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand, self.project = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.empty(width).uniform_(0.2, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to the same shape."""
        y: Tensor = self.project(F.gelu(self.expand(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))))
        return x + (self.scale * y).permute(0, 3, 1, 2)


class ConvNeXtAtto(nn.Module):
    """The smallest published ConvNeXt: 3.7 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        widths, depths = (40, 80, 160, 320), (2, 2, 6, 2)
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 4), _ChannelNorm(widths[0])]
        for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            if index:
                layers += [_ChannelNorm(widths[index - 1]), nn.Conv2d(widths[index - 1], width, 2, 2)]
            layers += [_ConvNeXtBlock(width) for _ in range(depth)]
        self.features, self.norm = nn.Sequential(*layers), nn.LayerNorm(widths[-1])
        self.classifier = nn.Linear(widths[-1], 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, 1000] from [N, 3, H, W]."""
        scores: Tensor = self.classifier(self.norm(self.features(x).mean((2, 3))))
        return scores


class UNet(nn.Module):
    """A U-Net of three levels, with transposed convolutions and concatenated maps: 0.5 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        widths = (16, 32, 64, 128)
        self.down = nn.ModuleList(_pair(cin, cout) for cin, cout in zip((3, *widths[:-1]), widths, strict=True))
        steps = list(pairwise(widths[::-1]))
        self.raise_ = nn.ModuleList(nn.ConvTranspose2d(cin, cout, 2, 2) for cin, cout in steps)
        self.up = nn.ModuleList(_pair(2 * cout, cout) for _, cout in steps)
        self.out = nn.Conv2d(widths[0], 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, 4, H, W] from [N, 3, H, W]."""
        kept = list[Tensor]()
        for level, part in enumerate(self.down):
            x = part(x if level == 0 else F.max_pool2d(x, 2))
            kept.append(x)
        for up, part, skip in zip(self.raise_, self.up, kept[-2::-1], strict=True):
            x = part(torch.cat((up(x), skip), 1))
        found: Tensor = self.out(x)
        return found


class Tiny(nn.Module):
    """A net for tests: a stem, one inverted bottleneck, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(ConvBatchNorm(3, 8, 3, 2), Inverted(8, 16, 8, 3, 1, "relu6"))
        self.classifier = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, 10] from [N, 3, H, W]."""
        scores: Tensor = self.classifier(self.body(x).mean((2, 3)))
        return scores


def _pair(cin: int, cout: int) -> nn.Module:
    return nn.Sequential(ConvBatchNorm(cin, cout, 3, act="relu"), ConvBatchNorm(cout, cout, 3, act="relu"))
