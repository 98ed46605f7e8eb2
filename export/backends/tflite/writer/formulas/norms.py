"""Define formulas of norms on the moments of the input, and of variances."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from hnas.export.backends.tflite.writer.formulas.registry import formula
from hnas.export.backends.tflite.writer.lowering import arguments


@formula("group_norm")
def _group_norm(x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    groups = x.reshape(x.shape[0], num_groups, x.shape[1] // num_groups, *x.shape[2:])
    return _affine(_normalised(groups, list(range(2, groups.ndim)), eps).reshape(x.shape), weight, bias)


@formula("instance_norm", when=lambda node: bool(arguments(node)["use_input_stats"]))
def _instance_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    return _affine(_normalised(x, list(range(2, x.ndim)), eps), weight, bias)


def _on_batch(node: fx.Node) -> bool:
    given = arguments(node)
    return bool(given["training"]) or given["running_mean"] is None


@formula("batch_norm", when=_on_batch)
def _batch_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    return _affine(_normalised(x, [axis for axis in range(x.ndim) if axis != 1], eps), weight, bias)


def _normalised(x: Tensor, axes: list[int], eps: float) -> Tensor:
    centred = x - torch.mean(x, axes, True)
    return centred * torch.rsqrt(torch.mean(torch.square(centred), axes, True) + eps)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    shape = (1, -1, *[1] * (x.ndim - 2))
    if weight is not None:
        x = x * weight.reshape(shape)
    return x if bias is None else x + bias.reshape(shape)


@formula("rms_norm")
def _rms_norm(x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float | None) -> Tensor:
    axes = list(range(x.ndim - len(normalized_shape), x.ndim))
    least = torch.finfo(torch.float32).eps if eps is None else eps
    value = x * torch.rsqrt(torch.mean(torch.square(x), axes, True) + least)
    return value if weight is None else value * weight


@formula("var")
def _var(x: Tensor, dim: Any = None, unbiased: bool = True, correction: Any = None, keepdim: bool = False) -> Tensor:
    return _moments(x, dim, unbiased if correction is None else correction, keepdim)[0]


@formula("std")
def _std(x: Tensor, dim: Any = None, unbiased: bool = True, correction: Any = None, keepdim: bool = False) -> Tensor:
    return torch.sqrt(_moments(x, dim, unbiased if correction is None else correction, keepdim)[0])


@formula("var_mean")
def _var_mean(
    x: Tensor, dim: Any = None, unbiased: bool = True, correction: Any = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    return _moments(x, dim, unbiased if correction is None else correction, keepdim)


@formula("std_mean")
def _std_mean(
    x: Tensor, dim: Any = None, unbiased: bool = True, correction: Any = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    variance, mean = _moments(x, dim, unbiased if correction is None else correction, keepdim)
    return torch.sqrt(variance), mean


def _moments(x: Tensor, dim: Any, correction: float, keepdim: bool) -> tuple[Tensor, Tensor]:
    axes = list(range(x.ndim)) if not dim and dim != 0 else [dim] if isinstance(dim, int) else list(dim)
    mean = torch.mean(x, axes, True)
    count = math.prod(x.shape[axis] for axis in axes)
    factor = 1.0 / max(count - correction, 0) if count > correction else math.inf
    variance = torch.sum(torch.square(x - mean), axes, keepdim) * factor
    return variance, mean if keepdim else torch.mean(x, axes)
