"""A stand-in for timm: one small network with the layers and the names of timm's EfficientNet."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import nn


class Norm(nn.BatchNorm2d):
    """A batch norm with its activation, as timm has it."""

    def __init__(self, channels: int, *, act: bool = True) -> None:
        super().__init__(channels, eps=1e-3)
        self.act = nn.ReLU6() if act else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(super().forward(x))


class DepthwiseSeparableConv(nn.Module):
    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(cin, cin, 3, 1, 1, groups=cin, bias=False)
        self.bn1 = Norm(cin)
        self.se = nn.Identity()
        self.conv_pw = nn.Conv2d(cin, cout, 1, bias=False)
        self.bn2 = Norm(cout, act=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn2(self.conv_pw(self.bn1(self.conv_dw(x))))


class InvertedResidual(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int, kernel: int, squeeze: bool) -> None:
        super().__init__()
        hidden = 4 * cin
        self.conv_pw = nn.Conv2d(cin, hidden, 1, bias=False)
        self.bn1 = Norm(hidden)
        self.conv_dw = nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden, bias=False)
        self.bn2 = Norm(hidden)
        self.se = nn.Conv2d(hidden, hidden, 1) if squeeze else nn.Identity()
        self.conv_pwl = nn.Conv2d(hidden, cout, 1, bias=False)
        self.bn3 = Norm(cout, act=False)
        self.adds = stride == 1 and cin == cout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn3(self.conv_pwl(self.se(self.bn2(self.conv_dw(self.bn1(self.conv_pw(x)))))))
        return x + y if self.adds else y


class EfficientNet(nn.Module):
    def __init__(self, squeeze: bool = False) -> None:
        super().__init__()
        self.conv_stem = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.bn1 = Norm(8)
        second = [InvertedResidual(16, 24, 2, 5, squeeze), InvertedResidual(24, 24, 1, 5, squeeze)]
        self.blocks = nn.Sequential(nn.Sequential(DepthwiseSeparableConv(8, 16)), nn.Sequential(*second))
        self.conv_head = nn.Conv2d(24, 32, 1, bias=False)
        self.bn2 = Norm(32)
        self.classifier = nn.Linear(32, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features before the classifier."""
        return self.bn2(self.conv_head(self.blocks(self.bn1(self.conv_stem(x))))).mean((2, 3))


class ResNet(nn.Module):
    """A network that is no EfficientNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, 2)
        self.bn = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 1000)

    def reset_classifier(self, classes: int) -> None:
        self.fc = nn.Linear(16, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.bn(self.conv(x)).relu().mean((2, 3)))


def make(*, offline: bool = False) -> Any:
    """Return the module timm, which knows ``tiny`` and ``squeezed``, and ``resnet``, which is no EfficientNet."""

    given = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.2, 0.2), "license": "mit", "hf_hub_id": "x/tiny"}

    def create_model(name: str, pretrained: bool) -> nn.Module:
        if pretrained and offline:
            raise OSError("no connection\nmore lines")
        torch.manual_seed(7)
        net: Any = ResNet() if name == "resnet" else EfficientNet(name == "squeezed")
        net.pretrained_cfg = {**given, "classifier": "fc" if name == "resnet" else "classifier"}
        return net

    known = ("tiny", "squeezed", "resnet")
    timm = ModuleType("timm")
    timm.__dict__.update(SimpleNamespace(create_model=create_model, is_model=known.__contains__).__dict__)
    timm.__dict__["list_models"] = lambda text: [name for name in known if name[:2] == text.strip("*")[:2]]
    return timm
