"""Build small named networks with random batch-norm statistics, on which the passes fire."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Apply a convolution without bias and its batch norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """Apply the basic block of a ResNet."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = conv_bn(inputs, outputs, 3, stride)
        self.second = conv_bn(outputs, outputs)
        self.short = conv_bn(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.second(self.relu(self.first(x))) + self.short(x))


class ResNet(nn.Module):
    """Have 8 convolutions and 8 batch norms, and a dropout in the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 8), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(Residual(8, 8, 1), Residual(8, 16, 2), Residual(16, 16, 1))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


class Inverted(nn.Module):
    """Apply an inverted bottleneck with a depthwise convolution and ReLU6."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        wide = 4 * inputs
        self.expand, self.depth = conv_bn(inputs, wide, 1), conv_bn(wide, wide, 3, stride, wide)
        self.out = conv_bn(wide, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.out(F.relu6(self.depth(F.hardtanh(self.expand(x), 0.0, 6.0))))
        return x + y if self.residual else y


class MobileNet(nn.Module):
    """Resemble MobileNetV2, with decomposed activations: clamp for ReLU6, arithmetic for hard-swish."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8, 3, 2)
        self.blocks = nn.Sequential(Inverted(8, 8, 1), Inverted(8, 12, 2), Inverted(12, 12, 1))
        self.last = conv_bn(12, 32, 1)
        self.classifier = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.blocks(self.stem(x).clamp(0, 6)))
        x = x * F.relu6(x + 3) / 6
        return self.classifier(F.dropout(x.mean((2, 3)), 0.2, self.training))


class TwoByTwo(nn.Module):
    """Take an image and a vector, and return class scores and a small map."""

    def __init__(self) -> None:
        super().__init__()
        self.image = conv_bn(1, 8, 3, 2)
        self.vector = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
        self.classes = nn.Linear(8, 5)
        self.map = nn.Conv2d(8, 2, 1)

    def forward(self, image: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.relu(self.image(image))
        features = features + torch.sigmoid(self.vector(vector)).reshape(-1, 8, 1).unsqueeze(-1)
        return self.classes(features.mean((2, 3))), self.map(features)


class ConvNeXt(nn.Module):
    """Apply a ConvNeXt block after a stem: LayerNorm over channels by permutes, GELU decomposed with erf."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 12, 4, 4)
        self.depth = nn.Conv2d(12, 12, 7, padding=3, groups=12)
        self.norm = nn.LayerNorm(12)
        self.wide, self.narrow = nn.Linear(12, 48), nn.Linear(48, 12)
        self.scale = nn.Parameter(torch.full((12,), 0.3))
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        y = self.wide(y)
        y = self.narrow(y * 0.5 * (1.0 + torch.erf(y / 2.0**0.5)))
        x = x + (self.scale.abs() * y).permute(0, 3, 1, 2)
        x = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2).flatten(2).unflatten(2, (1, -1))
        return self.head(x.mean((2, 3)))


class Hybrid(nn.Module):
    """Apply convolutions, then attention over the pixels with a table of positions that the graph computes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(1, 8, 3, 2), nn.SiLU(), conv_bn(8, 16, 3, 2))
        self.norm = nn.LayerNorm(16)
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.out = nn.Linear(16, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x * torch.sigmoid(x)
        tokens = x.flatten(2).transpose(1, 2).contiguous()
        positions = torch.arange(tokens.shape[1]).float().div(tokens.shape[1]).unsqueeze(-1).sin()
        normed = self.norm(tokens + positions)
        q, k, v = (part(normed).unflatten(2, (2, 8)).transpose(1, 2) for part in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).contiguous().view(x.shape[0], -1, 16)
        return self.head((tokens + self.out(mixed)).mean(1))


SHAPES: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "resnet": (ResNet, ((1, 3, 16, 16),)),
    "mobilenet": (MobileNet, ((1, 3, 16, 16),)),
    "two_by_two": (TwoByTwo, ((1, 1, 8, 8), (1, 4))),
    "convnext": (ConvNeXt, ((1, 3, 16, 16),)),
    "hybrid": (Hybrid, ((1, 1, 16, 16),)),
}


def build(name: str, seed: int = 0) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return the named network in eval mode with seeded weights and statistics, and inputs for it."""
    generator = torch.Generator().manual_seed(seed)
    create, shapes = SHAPES[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = create()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.copy_(torch.randn(part.num_features, generator=generator) * 0.3)
            part.running_var.copy_(torch.rand(part.num_features, generator=generator) + 0.5)
            part.weight.data.copy_(torch.rand(part.num_features, generator=generator) + 0.5)
            part.bias.data.copy_(torch.randn(part.num_features, generator=generator) * 0.3)
    return net.eval(), tuple(torch.randn(shape, generator=generator) for shape in shapes)
