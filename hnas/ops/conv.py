"""Building blocks of operations: batch norm without state in training, activations, convolution with norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hnas import distributed

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardswish": nn.Hardswish,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


def activation(name: str) -> nn.Module:
    """Return the activation ``name``. Raise ValueError for an unknown name."""
    if name not in _ACTIVATIONS:
        raise ValueError(f"no activation {name!r}; known: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]()


def round8(channels: float) -> int:
    """Return the multiple of 8 nearest to ``channels``, at least 8, because vector units have multiples of 8 lanes."""
    return max(8, int(channels / 8 + 0.5) * 8)


class Conv2d(nn.Conv2d):
    """A convolution that skips its initialisation on the meta device, where weights have no values."""

    def reset_parameters(self) -> None:
        """Draw new weights."""
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """[N, cin, H, W] -> [N, cout, H/stride, W/stride].

        1. In training, a depthwise kernel that is larger than its input: pad the input first. The gradient of the
           weight is 3 to 4 times as fast on CPUs, because oneDNN has a slow path for such padding.
        2. Otherwise: torch's convolution.
        """
        large = self.groups > 1 and max(self.kernel_size) > min(x.shape[2:])
        if not (large and self.training and torch.is_grad_enabled()):  # case 2
            return super().forward(x)
        assert not isinstance(self.padding, str)
        down, right = self.padding
        padded = F.pad(x, (right, right, down, down))
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class BatchNorm(nn.BatchNorm2d):
    """Batch norm over [N, C, H, W] that uses batch moments in training and changes no state there.

    Only evaluation uses running moments; ``Study.calibrate`` computes them for each architecture. If several processes
    train together, batch moments are those of the images of all processes.

    record: called in each pass of training with the values per channel, the batch mean and the unbiased variance [C];
        None (default): nothing is called.
    """

    running_mean: Tensor
    running_var: Tensor
    record: Callable[[int, Tensor, Tensor], None] | None = None

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.num_batches_tracked = None

    def reset_parameters(self) -> None:
        """Set scales to one and shifts to zero, except on the meta device."""
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` [N, C, H, W] normalised by batch moments in training, by running moments otherwise."""
        if self.training and self.record is not None:
            mean, variance = torch.zeros_like(self.bias), torch.zeros_like(self.bias)
            y = F.batch_norm(x, mean, variance, self.weight, self.bias, True, 1.0, self.eps)  # 1: takes these moments
            self.record(x.numel() // x.shape[1], mean, variance)
            return y
        if self.training and distributed.is_together():
            return distributed.batch_norm(x, self.weight, self.bias, self.eps)
        if self.training:
            return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class _ClampInPlace(torch.autograd.Function):
    """ReLU6 in place. It keeps its result for the gradient; torch's own one keeps a copy of its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return ``x`` between 0 and 6."""
        ctx.mark_dirty(x.clamp_(0, 6))
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Return the gradient of the input."""
        (result,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(grad, result, 0.0, 6.0)  # type: ignore[no-any-return]


def _activate_in_place(act: nn.Module, x: Tensor) -> Tensor:
    """Return ``act`` of the output of a batch norm, in place where possible: two thirds of the memory in training.

    The gradient of a batch norm does not need its output.
    """
    if isinstance(act, nn.ReLU6):
        clamped: Tensor = _ClampInPlace.apply(x)  # type: ignore[no-untyped-call]
        return clamped
    return F.relu_(x) if isinstance(act, nn.ReLU) else act(x)


class LayerNorm(nn.LayerNorm):
    """Layer norm over the channels of [N, C, H, W]; not the default, because it is slow in several CPU runtimes."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` [N, C, H, W] with each position normalised over its channels."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


NORMS = {"batch": BatchNorm, "layer": LayerNorm}


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm and, unless ``act`` is None, an activation."""

    def __init__(
        self, cin: int, cout: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: str | None = None
    ) -> None:
        super().__init__()
        self.conv = Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = BatchNorm(cout)
        self.act = activation(act) if act else None

    def forward(self, x: Tensor) -> Tensor:
        """[N, cin, H, W] -> [N, cout, H/stride, W/stride]."""
        x = self.norm(self.conv(x))
        if self.act is None:
            return x
        return _activate_in_place(self.act, x) if self.training else self.act(x)


def pooled(x: Tensor, *, training: bool) -> Tensor:
    """Return the mean of each channel: [N, C, H, W] -> [N, C].

    The formula for training gives a channels-last gradient, which is the memory order of ``x``. torch's mean over two
    axes gives a channels-first gradient; the backward pass of an activation with mixed orders took ten times as long.
    """
    return x.permute(0, 2, 3, 1).flatten(1, 2).mean(1) if training else x.mean((2, 3))


class SqueezeExcite(nn.Module):
    """Channel attention of MobileNetV3 (hard-sigmoid gate); off by default, because int8 kernels handle it badly."""

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        hidden = round8(channels / reduction)
        self.reduce = Conv2d(channels, hidden, 1)
        self.expand = Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` [N, C, H, W] with each channel scaled by a gate in [0, 1]."""
        mean = pooled(x, training=True)[:, :, None, None] if self.training else x.mean((2, 3), keepdim=True)
        gate = F.relu(self.reduce(mean))
        return x * F.hardsigmoid(self.expand(gate))
