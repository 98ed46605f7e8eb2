"""What the operations are made of: a norm that training does not mutate, activations, and convolution + norm."""

from __future__ import annotations

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
    """The activation called ``name``."""
    if name not in _ACTIVATIONS:
        raise ValueError(f"no activation {name!r}; known: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]()


def round8(channels: float) -> int:
    """The multiple of 8 nearest to ``channels``, at least 8: vector units are 8 lanes wide or a multiple of it."""
    return max(8, int(channels / 8 + 0.5) * 8)


class Conv2d(nn.Conv2d):
    """A convolution that is built without an initialisation on the meta device, where a skeleton has no values."""

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        if not self.weight.is_meta:
            super().reset_parameters()


class BatchNorm(nn.BatchNorm2d):
    """Batch norm over [N, C, H, W] that uses batch moments in training and mutates nothing there.

    Running moments are inputs of evaluation only; ``Study.calibrate`` measures them for each architecture. Where
    several processes train together, the moments of a training step are those of all their images.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.num_batches_tracked = None

    def reset_parameters(self) -> None:
        """Set scales to one and shifts to zero; a skeleton's, on the meta device, have no values."""
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [N, C, H, W] by batch moments in training, by running ones otherwise."""
        if self.training and distributed.is_together():
            return distributed.batch_norm(x, self.weight, self.bias, self.eps)
        if self.training:
            return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class LayerNorm(nn.LayerNorm):
    """Layer norm over the channels of [N, C, H, W]; an option only: several CPU runtimes have a cliff here."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise every position of [N, C, H, W] over its channels."""
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
        return x if self.act is None else self.act(x)


def pooled(x: Tensor, *, training: bool) -> Tensor:
    """[N, C, H, W] -> [N, C]: the mean of each channel.

    In training by another way with the same gradient, but channels-last like ``x``: torch's own for this mean is
    channels-first, and an activation's gradient from the two orders took ten times as long.
    """
    return x.permute(0, 2, 3, 1).flatten(1, 2).mean(1) if training else x.mean((2, 3))


class SqueezeExcite(nn.Module):
    """Channel attention of MobileNetV3 (hard-sigmoid gate); off by default because int8 kernels handle it badly."""

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        hidden = round8(channels / reduction)
        self.reduce = Conv2d(channels, hidden, 1)
        self.expand = Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W], each channel scaled by a gate in [0, 1]."""
        mean = pooled(x, training=True)[:, :, None, None] if self.training else x.mean((2, 3), keepdim=True)
        gate = F.relu(self.reduce(mean))
        return x * F.hardsigmoid(self.expand(gate))
