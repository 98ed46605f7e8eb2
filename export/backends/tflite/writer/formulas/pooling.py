"""Define formulas of pooling in any number of dimensions, in terms of the pooling of maps that the runtime has."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from hnas.export.backends.tflite.writer.formulas.registry import formula
from hnas.export.backends.tflite.writer.formulas.sampling import resampled
from hnas.export.backends.tflite.writer.spatial import pools
from hnas.export.graph.nodes import aten, per_dimension

_LOWEST = float(torch.finfo(torch.float32).min)


@formula("max_pool1d", "max_pool1d_with_indices")
def _max_pool1d(x: Tensor, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Tensor:
    sizes = [[default, *per_dimension(value, 1)] for value, default in ((kernel_size, 1), (padding, 0), (dilation, 1))]
    step = [1, *per_dimension(stride or kernel_size, 1)]
    return F.max_pool2d(x.unsqueeze(-2), sizes[0], step, sizes[1], sizes[2], ceil_mode).squeeze(-2)


@formula("avg_pool1d")
def _avg_pool1d(
    x: Tensor, kernel_size: Any, stride: Any, padding: Any, ceil_mode: bool, count_include_pad: bool
) -> Tensor:
    kernel, border = [1, *per_dimension(kernel_size, 1)], [0, *per_dimension(padding, 1)]
    step = [1, *per_dimension(stride or kernel_size, 1)]
    return F.avg_pool2d(x.unsqueeze(-2), kernel, step, border, ceil_mode, count_include_pad).squeeze(-2)


@formula("max_pool2d", when=lambda node: not pools(node))
def _max_pool2d(x: Tensor, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Tensor:
    window = _Window.of(x.shape[2:], kernel_size, stride, padding, dilation, ceil_mode)
    x = torch.constant_pad_nd(x, window.border(), _LOWEST)
    if max(window.dilation) == 1:
        return F.max_pool2d(x, window.kernel, window.stride)
    for axis in (2, 3):  # the largest of a window is the largest along one axis, of the largest along the other
        k, s, d, count = (part[axis - 2] for part in (window.kernel, window.stride, window.dilation, window.sizes))
        parts = [x.narrow(axis, n * d, (count - 1) * s + 1) for n in range(k)]
        parts = [part[(slice(None),) * axis + (slice(None, None, s),)] for part in parts]
        x = reduce(torch.maximum, parts)
    return x


@formula("avg_pool2d", when=lambda node: not pools(node))
def _avg_pool2d(
    x: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: Any,
) -> Tensor:
    """Average with zeros around the map, then correct the divisor of each window."""
    window = _Window.of(x.shape[2:], kernel_size, stride, padding, 1, ceil_mode)
    ones = torch.ones(1, 1, *x.shape[2:])
    right = aten.avg_pool2d.default(
        ones, window.kernel, window.stride, window.padding, ceil_mode, count_include_pad, divisor_override
    )
    plain = F.avg_pool2d(torch.constant_pad_nd(ones, window.border(), 0.0), window.kernel, window.stride)
    return F.avg_pool2d(torch.constant_pad_nd(x, window.border(), 0.0), window.kernel, window.stride) * (right / plain)


@dataclass(frozen=True)
class _Window:
    """Hold the sizes of a pooling in two dimensions.

    maps, sizes: of the input and of the result.
    """

    maps: Sequence[int]
    kernel: list[int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    sizes: list[int]

    @classmethod
    def of(cls, maps: Sequence[int], kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> _Window:
        k, s, p, d = (per_dimension(value, 2) for value in (kernel, stride or kernel, padding, dilation))
        sizes = [_size(*row, ceil) for row in zip(maps, k, s, p, d, strict=True)]
        return cls(maps, k, s, p, d, sizes)

    def border(self) -> list[int]:
        """Return the padding that the windows reach, as ``pad`` takes it. A negative one cuts off."""
        rows = zip(self.maps, self.kernel, self.stride, self.padding, self.dilation, self.sizes, strict=True)
        ends = [(p, (count - 1) * s + d * (k - 1) + 1 - whole - p) for whole, k, s, p, d, count in rows]
        return [*ends[1], *ends[0]]


def _size(whole: int, kernel: int, stride: int, padding: int, dilation: int, ceil: bool) -> int:
    room = whole + 2 * padding - dilation * (kernel - 1) - 1
    size = (-(-room // stride) if ceil else room // stride) + 1
    return size - 1 if ceil and (size - 1) * stride >= whole + padding else size  # no window begins in the border


@formula("max_pool3d")
def _max_pool3d(x: Tensor, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Tensor:
    kernel, border = per_dimension(kernel_size, 3), per_dimension(padding, 3)
    step, apart = per_dimension(stride or kernel_size, 3), per_dimension(dilation, 3)
    flat, deep = _halves(kernel, step, border, apart)
    return _by_halves(x, *(partial(_called, aten.max_pool2d.default, part, [ceil_mode]) for part in (flat, deep)))


@formula("avg_pool3d")
def _avg_pool3d(
    x: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: Any,
) -> Tensor:
    kernel, border = per_dimension(kernel_size, 3), per_dimension(padding, 3)
    flat, deep = _halves(kernel, per_dimension(stride or kernel_size, 3), border)
    rest = [ceil_mode, count_include_pad]
    value = _by_halves(x, *(partial(_called, aten.avg_pool2d.default, part, rest) for part in (flat, deep)))
    return value * (math.prod(kernel) / divisor_override) if divisor_override else value


@formula("adaptive_avg_pool3d")
def _adaptive_avg_pool3d(x: Tensor, output_size: Any) -> Tensor:
    depth, *maps = (want or has for want, has in zip(per_dimension(output_size, 3), x.shape[2:], strict=True))
    return _by_halves(
        x,
        lambda y: F.adaptive_avg_pool2d(y, (maps[0], maps[1])),
        lambda y: F.adaptive_avg_pool2d(y, (depth, y.shape[-1])),
    )


def _called(target: Any, part: list[list[int]], rest: list[bool], x: Tensor) -> Tensor:
    return target(x, *part, *rest)


def _halves(*parts: list[int]) -> tuple[list[list[int]], list[list[int]]]:
    """Return the arguments for height and width, and those for the depth as the height of a map."""
    nothing = [1, 1, 0, 1]  # of kernel, stride, padding, dilation
    return [part[1:] for part in parts], [[part[0], nothing[number]] for number, part in enumerate(parts)]


def _by_halves(x: Tensor, flat: Callable[[Tensor], Tensor], deep: Callable[[Tensor], Tensor]) -> Tensor:
    """Pool over height and width, then over the depth."""
    n, channels, depth = x.shape[:3]
    y = flat(x.reshape(n, channels * depth, *x.shape[3:]))
    height, width = y.shape[2:]
    y = deep(y.reshape(n, channels, depth, height * width))
    return y.reshape(n, channels, y.shape[2], height, width)


@formula("adaptive_avg_pool1d")
def _adaptive_avg_pool1d(x: Tensor, output_size: Any) -> Tensor:
    return F.adaptive_avg_pool2d(x.unsqueeze(-2), (1, per_dimension(output_size, 1)[0])).squeeze(-2)


def _is_uneven(node: fx.Node) -> bool:
    maps = node.args[0].meta["val"].shape[2:]  # type: ignore[union-attr]
    return any(whole % part for whole, part in zip(maps, node.meta["val"].shape[2:], strict=True))


@formula("adaptive_avg_pool2d", when=_is_uneven)
def _adaptive_avg_pool2d(x: Tensor, output_size: Any) -> Tensor:
    sizes = [want or has for want, has in zip(per_dimension(output_size, 2), x.shape[2:], strict=True)]
    return resampled(x, sizes, lambda line, size: aten.adaptive_avg_pool2d.default(line, [1, size]))


@formula("adaptive_max_pool1d")
def _adaptive_max_pool1d(x: Tensor, output_size: Any) -> tuple[Tensor, None]:
    return F.adaptive_max_pool2d(x.unsqueeze(-2), [1, *per_dimension(output_size, 1)]).squeeze(-2), None


@formula("adaptive_max_pool2d")
def _adaptive_max_pool2d(x: Tensor, output_size: Any) -> tuple[Tensor, None]:
    sizes = [want or has for want, has in zip(per_dimension(output_size, 2), x.shape[2:], strict=True)]
    if not any(whole % part for whole, part in zip(x.shape[2:], sizes, strict=True)):
        return F.max_pool2d(x, [whole // part for whole, part in zip(x.shape[2:], sizes, strict=True)]), None
    for axis, size in zip((2, 3), sizes, strict=True):
        whole = x.shape[axis]
        ends = [(n * whole // size, -(-(n + 1) * whole // size)) for n in range(size)]
        x = torch.cat([torch.amax(x.narrow(axis, low, high - low), axis, True) for low, high in ends], axis)
    return x, None
