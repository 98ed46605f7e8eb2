"""Draw one random operator for a map [N, C, H, W]: ``draw_step(rng, x)``.

A step may not fit the map; the caller then draws again.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_Step = Callable[[Tensor], Tensor]

_POINTWISE: dict[str, _Step] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "elu": F.elu,
    "softplus": F.softplus,
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 0.75),
    "clamp": lambda x: x.clamp(-1.0, 2.0),
    "clamp_min": lambda x: x.clamp(min=-0.25),
    "clamp_max": lambda x: x.clamp(max=1.5),
    "affine": lambda x: x * 1.5 - 0.25,
    "reverse": lambda x: 1.0 - x,
    "over": lambda x: x / 3.0,
    "square": lambda x: x * x,
    "power": lambda x: x**2,
    "abs": torch.abs,
    "negative": torch.neg,
    "root": lambda x: torch.sqrt(x.abs() + 0.5),
    "exp": lambda x: torch.exp(-x.abs()),
    "spelled_hardswish": lambda x: x * F.relu6(x + 3) / 6,
    "spelled_silu": lambda x: x * torch.sigmoid(x),
}

_SHAPING: dict[str, _Step] = {
    "shuffle": lambda x: x.reshape(x.shape[0], 2, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2),
    "transpose": lambda x: x.transpose(2, 3),
    "back_and_forth": lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "flip_halves": lambda x: torch.cat(tuple(reversed(x.chunk(2, 1))), 1),
    "split": lambda x: torch.cat((x[:, : x.shape[1] // 2].relu(), x[:, x.shape[1] // 2 :]), 1),
    "crop": lambda x: x[:, :, 1:, : x.shape[3] - 1],
    "every_other": lambda x: x[:, :, ::2, ::2],
    "channels": lambda x: x[:, 1:],
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "rows": lambda x: x + x.mean(2, keepdim=True),
    "centre": lambda x: x - x.mean((2, 3), keepdim=True),
    "softmax": lambda x: torch.softmax(x, 1) * x.shape[1],
    "softmax_row": lambda x: torch.softmax(x, 3) * x.shape[3],
    "normalise": lambda x: F.normalize(x, dim=1) * 3.0,
    "largest": lambda x: x - x.amax((2, 3), keepdim=True),
    "stacked": lambda x: torch.stack((x, x.relu()), 2).flatten(1, 2),
    "tokens": lambda x: x.flatten(2).transpose(1, 2).transpose(1, 2).reshape(x.shape),
    "group_norm": lambda x: F.group_norm(x, 2),
    "instance_norm": F.instance_norm,
}


class _Applied(nn.Module):
    """Apply a function as a step."""

    def __init__(self, function: _Step) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Return the value of the function."""
        return self.function(x)


class _LastNorm(nn.Module):
    """LayerNorm over channels between two permutes, as in ConvNeXt, with a linear layer or without."""

    def __init__(self, channels: int, linear: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.linear = nn.Linear(channels, channels) if linear else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to the same shape."""
        y: Tensor = self.linear(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return y


class _SqueezeGate(nn.Module):
    """Squeeze and excitation, with convolutions or linear layers."""

    def __init__(self, channels: int, linear: bool, hard: bool) -> None:
        super().__init__()
        kind = nn.Linear if linear else lambda a, b: nn.Conv2d(a, b, 1)
        self.down, self.up = kind(channels, max(1, channels // 4)), kind(max(1, channels // 4), channels)
        self.linear, self.gate = linear, F.hardsigmoid if hard else torch.sigmoid

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to the same shape."""
        y = x.mean((2, 3)) if self.linear else F.adaptive_avg_pool2d(x, 1)
        y = self.gate(self.up(F.relu(self.down(y))))
        return x * (y[:, :, None, None] if self.linear else y)


class _PixelAttention(nn.Module):
    """Self-attention over the pixels, written out or with torch's own operator."""

    def __init__(self, channels: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.heads, self.fused = heads, fused

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to the same shape."""
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(tokens).chunk(3, 2))
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, -1) @ v
        out: Tensor = tokens + self.out(mixed.transpose(1, 2).flatten(2))
        return out.transpose(1, 2).reshape(x.shape)


def draw_step(rng: Random, x: Tensor) -> nn.Module:
    """Return a random operator for ``x``, with weights of its own; the operator may still not fit ``x``."""
    kind = rng.choices(tuple(_STEPS), tuple(weight for weight, _ in _STEPS.values()))[0]
    return _STEPS[kind][1](rng, x)


def _convolution(rng: Random, x: Tensor) -> nn.Module:
    """Return a convolution, with or without a pad before it, and with or without norms and an activation after it."""
    conv = _bare_convolution(rng, x.shape[1])
    parts: list[nn.Module] = [conv]
    if rng.random() < 0.25:
        pads = tuple(rng.randint(0, 2) for _ in range(4))
        value = 0.0 if rng.random() < 0.8 else 0.5
        parts.insert(0, _Applied(lambda x: F.pad(x, pads, value=value)))
    if rng.random() < 0.6:
        parts.append(_norm(conv.out_channels))
    if rng.random() < 0.7:
        parts.append(_Applied(_POINTWISE[rng.choice(tuple(_POINTWISE))]))
    if rng.random() < 0.15:
        parts.append(_norm(conv.out_channels))
    return nn.Sequential(*parts)


def _bare_convolution(rng: Random, cin: int) -> nn.Conv2d:
    groups = rng.choice([1, 1, 1, cin, cin, *(g for g in (2, 3, 4) if cin % g == 0)])
    cout = groups * rng.choice((1, 2)) if groups == cin else groups * rng.randint(1, max(1, 24 // groups))
    kernel = _pair(rng, 0.8, (1, 1, 2, 3, 3, 4, 5, 7), 5)
    stride = _pair(rng, 0.85, (1, 1, 2, 3), 3)
    dilation = (rng.choice((1, 1, 1, 2, 3)), rng.choice((1, 1, 1, 2)))
    padding = _padding(rng, kernel, stride)
    mode: Literal["reflect", "zeros"] = "reflect" if padding != "same" and rng.random() < 0.04 else "zeros"
    return nn.Conv2d(cin, cout, kernel, stride, padding, dilation, groups, rng.random() < 0.6, mode)


def _pair(rng: Random, square: float, sizes: tuple[int, ...], most: int) -> tuple[int, int]:
    """Return two equal values of ``sizes`` with the probability ``square``, or two values of 1 to ``most``."""
    if rng.random() < square:
        return (rng.choice(sizes),) * 2
    return rng.randint(1, most), rng.randint(1, most)


def _padding(rng: Random, kernel: tuple[int, int], stride: tuple[int, int]) -> str | tuple[int, int]:
    """Return a random padding: any, half of the kernel, or "same" where torch accepts it without a warning."""
    padding = (rng.randint(0, 3), rng.randint(0, 3)) if rng.random() < 0.4 else (kernel[0] // 2, kernel[1] // 2)
    odd = kernel[0] % 2 == kernel[1] % 2 == 1  # torch warns of "same" with even kernels
    return "same" if stride == (1, 1) and odd and rng.random() < 0.2 else padding


def _norm(channels: int) -> nn.BatchNorm2d:
    """Return a batch norm with random weights and moments."""
    norm = nn.BatchNorm2d(channels)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_(0, 0.3)
    norm.running_var.uniform_(0.3, 1.5)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias, 0, 0.3)
    return norm


def _transposed(rng: Random, x: Tensor) -> nn.Module:
    cin, stride = x.shape[1], rng.choice((1, 2, 2, 3))
    groups = rng.choice([1, 1, cin]) if cin <= 16 else 1
    cout = groups * rng.randint(1, max(1, 16 // groups))
    extra = rng.randint(0, stride - 1) if rng.random() < 0.3 else 0
    return nn.ConvTranspose2d(
        cin, cout, rng.randint(1, 4), stride, rng.randint(0, 1), extra, groups, rng.random() < 0.6
    )


def _pool(rng: Random, x: Tensor) -> nn.Module:
    kernel: int | tuple[int, int] = rng.randint(2, 4) if rng.random() < 0.7 else (rng.randint(1, 3), rng.randint(2, 4))
    smallest = kernel if isinstance(kernel, int) else min(kernel)
    stride, padding, ceil = rng.randint(1, 3), rng.randint(0, smallest // 2), rng.random() < 0.25
    if rng.random() < 0.5:
        return nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil)
    if rng.random() < 0.2:
        return nn.AdaptiveAvgPool2d((rng.randint(1, x.shape[2]), rng.randint(1, x.shape[3])))
    return nn.AvgPool2d(kernel, stride, padding, ceil_mode=ceil, count_include_pad=rng.random() < 0.6)


def _larger(rng: Random, x: Tensor) -> nn.Module:
    size = (rng.randint(2, 2 * x.shape[2]), rng.randint(2, 2 * x.shape[3])) if rng.random() < 0.4 else None
    scale = None if size else 2.0
    if rng.random() < 0.5:
        return nn.Upsample(size, scale, "nearest")
    return nn.Upsample(size, scale, "bilinear", align_corners=rng.random() < 0.5)


def _padded(rng: Random, _: Tensor) -> nn.Module:
    pads = tuple(rng.randint(-1 if rng.random() < 0.1 else 0, 2) for _ in range(4))
    mode = rng.choice(("constant", "constant", "constant", "reflect", "replicate"))
    value = rng.choice((0.0, 0.0, 1.0, -2.0)) if mode == "constant" else None
    return _Applied(lambda x: F.pad(x, pads, mode, value))


def _function(table: dict[str, _Step]) -> Callable[[Random, Tensor], nn.Module]:
    return lambda rng, _: _Applied(table[rng.choice(tuple(table))])


def _attention(rng: Random, x: Tensor) -> nn.Module:
    heads = rng.choice([h for h in (1, 2, 4) if x.shape[1] % h == 0])
    return _PixelAttention(x.shape[1], heads, rng.random() < 0.5)


_STEPS: dict[str, tuple[float, Callable[[Random, Tensor], nn.Module]]] = {
    "convolution": (10, _convolution),
    "pointwise": (2, _function(_POINTWISE)),
    "shaping": (2, _function(_SHAPING)),
    "pool": (1.5, _pool),
    "transposed": (0.7, _transposed),
    "larger": (0.7, _larger),
    "padded": (0.7, _padded),
    "last_norm": (0.7, lambda rng, x: _LastNorm(x.shape[1], rng.random() < 0.5)),
    "gated": (1, lambda rng, x: _SqueezeGate(x.shape[1], rng.random() < 0.5, rng.random() < 0.5)),
    "attention": (0.5, _attention),
    "norm": (0.5, lambda _, x: _norm(x.shape[1])),
    "prelu": (0.3, lambda rng, x: nn.PReLU(x.shape[1] if rng.random() < 0.5 else 1)),
    "dropout": (0.2, lambda _rng, _x: nn.Dropout(0.2)),
}
