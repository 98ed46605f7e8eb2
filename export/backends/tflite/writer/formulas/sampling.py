"""Define formulas of operators that change the resolution of maps, and of convolutions that the runtime lacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from hnas.export.backends.tflite.writer.formulas.registry import formula
from hnas.export.backends.tflite.writer.lowering import arguments, operator_name
from hnas.export.backends.tflite.writer.spatial import has_own_scales
from hnas.export.graph.nodes import aten, per_dimension

_Line = Callable[[Tensor, int], Tensor]  # resamples the last axis of [n, 1, 1, whole] to a size


def resampled(x: Tensor, sizes: Sequence[int], line: _Line) -> Tensor:
    """Resample both axes of a map by products with constant matrices, which ``line`` makes of unit matrices."""
    for turn, size in zip((3, 2), reversed(list(sizes)), strict=True):
        whole = x.shape[turn]
        if size == whole:
            continue
        matrix = line(torch.eye(whole).reshape(whole, 1, 1, whole), size).reshape(whole, size)
        x = torch.matmul(x, matrix) if turn == 3 else torch.matmul(x.transpose(2, 3), matrix).transpose(2, 3)
    return x


def _sizes(x: Tensor, output_size: Any, scales: Any) -> list[int]:
    if output_size is not None:
        return list(output_size)
    return [math.floor(whole * scale) for whole, scale in zip(x.shape[2:], scales, strict=True)]


@formula("upsample_bicubic2d.vec")
def _bicubic(x: Tensor, output_size: Any, align_corners: bool, scale_factors: Any) -> Tensor:
    return _weighed(aten.upsample_bicubic2d.default, x, output_size, align_corners, scale_factors)


@formula("_upsample_bilinear2d_aa.vec")
def _smooth(x: Tensor, output_size: Any, align_corners: bool, scale_factors: Any) -> Tensor:
    return _weighed(aten._upsample_bilinear2d_aa.default, x, output_size, align_corners, scale_factors)


@formula("_upsample_bicubic2d_aa.vec")
def _smooth_bicubic(x: Tensor, output_size: Any, align_corners: bool, scale_factors: Any) -> Tensor:
    return _weighed(aten._upsample_bicubic2d_aa.default, x, output_size, align_corners, scale_factors)


@formula("upsample_bilinear2d.vec", when=has_own_scales)
def _bilinear(x: Tensor, output_size: Any, align_corners: bool, scale_factors: Any) -> Tensor:
    return _weighed(aten.upsample_bilinear2d.default, x, output_size, align_corners, scale_factors)


def _weighed(target: Any, x: Tensor, output_size: Any, align_corners: bool, scales: Any) -> Tensor:
    factors = iter((scales or (None, None))[::-1])  # ``resampled`` begins with the width
    return resampled(
        x,
        _sizes(x, output_size, scales),
        lambda line, size: target(line, [1, size], align_corners, None, next(factors)),
    )


@formula("upsample_linear1d.vec")
def _linear(x: Tensor, output_size: Any, align_corners: bool, scale_factors: Any) -> Tensor:
    scales = None if scale_factors is None else [1.0, *scale_factors]
    sizes = None if output_size is None else [1, *output_size]
    return aten.upsample_bilinear2d.vec(x.unsqueeze(2), sizes, align_corners, scales).squeeze(2)


def _other_factors(node: fx.Node) -> bool:
    maps = node.args[0].meta["val"].shape[2:]  # type: ignore[union-attr]
    return has_own_scales(node) or any(
        size % whole for whole, size in zip(maps, node.meta["val"].shape[2:], strict=True)
    )


@formula("upsample_nearest2d.vec", when=_other_factors)
def _nearest(x: Tensor, output_size: Any, scale_factors: Any) -> Tensor:
    return _copied(aten.upsample_nearest2d.default, x, output_size, scale_factors)


@formula("_upsample_nearest_exact2d.vec")
def _nearest_exact(x: Tensor, output_size: Any, scale_factors: Any) -> Tensor:
    return _copied(aten._upsample_nearest_exact2d.default, x, output_size, scale_factors)


@formula("upsample_nearest1d.vec")
def _nearest1d(x: Tensor, output_size: Any, scale_factors: Any) -> Tensor:
    scales = None if scale_factors is None else [1.0, *scale_factors]
    sizes = None if output_size is None else [1, *output_size]
    return aten.upsample_nearest2d.vec(x.unsqueeze(2), sizes, scales).squeeze(2)


def _copied(target: Any, x: Tensor, output_size: Any, scales: Any) -> Tensor:
    sizes = _sizes(x, output_size, scales)
    for axis, size, scale in zip((2, 3), sizes, scales or (None, None), strict=True):
        line = torch.arange(x.shape[axis]).to(torch.float32).reshape(1, 1, 1, -1)
        x = torch.index_select(x, axis, target(line, [1, size], None, scale).reshape(-1).to(torch.int64))
    return x


def _in_groups(node: fx.Node) -> bool:
    return arguments(node)["groups"] > 1 and operator_name(node) == "conv_transpose2d"


@formula("conv_transpose2d", when=_in_groups)
def _grouped(
    x: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, output_padding: Any, groups: int, dilation: Any
) -> Tensor:
    """Write zeros between the entries of the map, then apply a convolution with the mirrored kernel."""
    step, cut, more, apart = (per_dimension(value, 2) for value in (stride, padding, output_padding, dilation))
    n, channels, height, width = x.shape
    if max(step) > 1:
        wide = torch.constant_pad_nd(
            x.reshape(n, channels, height, 1, width, 1), [0, step[1] - 1, 0, 0, 0, step[0] - 1]
        )
        x = wide.reshape(n, channels, height * step[0], width * step[1])
    borders = []
    for axis in (1, 0):
        reach = apart[axis] * (weight.shape[2 + axis] - 1) - cut[axis]
        borders += [reach, reach + more[axis] - (step[axis] - 1)]
    kernel = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
    kernel = torch.flip(kernel, [2, 3])
    return F.conv2d(torch.constant_pad_nd(x, borders), kernel, bias, 1, 0, apart, groups)


@formula("conv_transpose1d")
def _conv_transpose1d(
    x: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, output_padding: Any, groups: int, dilation: Any
) -> Tensor:
    pairs = ((stride, 1), (padding, 0), (output_padding, 0), (dilation, 1))
    step, cut, more, apart = ([default, *per_dimension(value, 1)] for value, default in pairs)
    return F.conv_transpose2d(x.unsqueeze(2), weight.unsqueeze(2), bias, step, cut, more, groups, apart).squeeze(2)


@formula("im2col")
def _im2col(x: Tensor, kernel_size: Any, dilation: Any, padding: Any, stride: Any) -> Tensor:
    """Copy each entry of a window by a convolution of its own."""
    kernel = per_dimension(kernel_size, 2)
    count, channels = kernel[0] * kernel[1], x.shape[1]
    filters = torch.eye(count).reshape(count, 1, *kernel).repeat(channels, 1, 1, 1)
    return F.conv2d(x, filters, None, stride, padding, dilation, channels).flatten(2)


@formula("col2im")
def _col2im(x: Tensor, output_size: Any, kernel_size: Any, dilation: Any, padding: Any, stride: Any) -> Tensor:
    """Add each entry of a window to its place by a transposed convolution."""
    kernel, step, cut, apart = (per_dimension(value, 2) for value in (kernel_size, stride, padding, dilation))
    parts = zip(output_size, kernel, step, cut, apart, strict=True)
    counts = [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in parts]
    rows = zip(output_size, kernel, step, cut, apart, counts, strict=True)
    more = [size - ((n - 1) * s - 2 * p + d * (k - 1) + 1) for size, k, s, p, d, n in rows]
    filters = torch.eye(x.shape[1]).reshape(x.shape[1], -1, *kernel)
    return F.conv_transpose2d(x.reshape(*x.shape[:2], *counts), filters, None, step, cut, more, 1, apart)
