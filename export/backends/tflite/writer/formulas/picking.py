"""Define formulas of operators that pick, move or border entries, in terms of ``index_select`` and slices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from hnas.export.backends.tflite.writer.formulas.registry import formula
from hnas.export.backends.tflite.writer.lowering import arguments

_Positions = Callable[[Tensor, int], Tensor]  # of an entry before a border was added, from its position after


@formula("reflection_pad1d", "reflection_pad2d", "reflection_pad3d")
def _reflected(x: Tensor, padding: Sequence[int]) -> Tensor:
    return _bordered(x, padding, lambda at, size: (size - 1) - torch.abs((size - 1) - torch.abs(at)))


@formula("replication_pad1d", "replication_pad2d", "replication_pad3d")
def _replicated(x: Tensor, padding: Sequence[int]) -> Tensor:
    return _bordered(x, padding, lambda at, size: torch.clamp(at, 0, size - 1))


def _circular(x: Tensor, padding: Sequence[int]) -> Tensor:
    return _bordered(x, padding, torch.remainder)


_MODES = {"reflect": _reflected, "replicate": _replicated, "circular": _circular}


@formula("pad", "constant_pad_nd", when=lambda node: _mode(node) in _MODES or min(arguments(node)["pad"]) < 0)
def _padded(x: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    for axis, (before, after) in _edges(x, pad):  # a negative border cuts off
        x = torch.narrow(x, axis, max(-before, 0), x.shape[axis] - max(-before, 0) - max(-after, 0))
    pad = [max(width, 0) for width in pad]
    if mode in _MODES:
        return _MODES[mode](x, pad)
    return torch.constant_pad_nd(x, pad, value or 0) if any(pad) else x


def _mode(node: fx.Node) -> str:
    return str(arguments(node).get("mode", "constant"))


def _edges(x: Tensor, padding: Sequence[int]) -> list[tuple[int, tuple[int, int]]]:
    pairs = zip(padding[::2], padding[1::2], strict=True)
    return [(x.ndim - 1 - number, pair) for number, pair in enumerate(pairs) if any(pair)]


def _bordered(x: Tensor, padding: Sequence[int], positions: _Positions) -> Tensor:
    for axis, (before, after) in _edges(x, padding):
        size = x.shape[axis]
        x = torch.index_select(x, axis, positions(torch.arange(-before, size + after), size))
    return x


@formula("roll")
def _roll(x: Tensor, shifts: Any, dims: Any) -> Tensor:
    steps, axes = ([value] if isinstance(value, int) else list(value) for value in (shifts, dims))
    if not axes:
        return _roll(x.reshape(-1), steps, [0]).reshape(x.shape)
    for step, axis in zip(steps, axes, strict=True):
        if step % x.shape[axis]:
            x = torch.index_select(x, axis, torch.remainder(torch.arange(x.shape[axis]) - step, x.shape[axis]))
    return x


@formula("flip")
def _flip(x: Tensor, dims: Sequence[int]) -> Tensor:
    for axis in dims:
        x = torch.index_select(x, axis, (x.shape[axis] - 1) - torch.arange(x.shape[axis]))
    return x


@formula("index", "_unsafe_index")
def _index(x: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    """Pick by one position for each of several axes: one lookup in these axes as one."""
    axes = [axis for axis, index in enumerate(indices) if index is not None]
    others = [axis for axis in range(x.ndim) if axis not in axes]
    given = _broadcast([index for index in indices if index is not None])
    if any(index.dtype == torch.bool for index in given):
        raise ValueError("the size of a selection by a mask depends on values")
    flat = torch.zeros_like(given[0])
    for axis, index in zip(axes, given, strict=True):
        flat = flat * x.shape[axis] + torch.where(torch.lt(index, 0), index + x.shape[axis], index)
    table = torch.permute(x, [*axes, *others]).reshape(-1, *(x.shape[axis] for axis in others))
    found = torch.index_select(table, 0, flat.reshape(-1)).reshape(*flat.shape, *table.shape[1:])
    first = axes[0] if axes == list(range(axes[0], axes[0] + len(axes))) else 0  # as torch defines it
    return torch.movedim(found, list(range(flat.ndim)), list(range(first, first + flat.ndim)))


@formula("broadcast_tensors")
def _broadcast(x: Sequence[Tensor]) -> list[Tensor]:
    shape = np.broadcast_shapes(*(tuple(each.shape) for each in x))
    return [each if tuple(each.shape) == shape else each.expand(shape) for each in x]


@formula("gather")
def _gather(x: Tensor, dim: int, index: Tensor) -> Tensor:
    """Pick along one axis by positions for each entry: one lookup in the flat tensor."""
    dim, flat = dim % x.ndim, index
    strides = [1] * x.ndim
    for axis in range(x.ndim - 2, -1, -1):
        strides[axis] = strides[axis + 1] * x.shape[axis + 1]
    flat = index * strides[dim]
    for axis in range(x.ndim):
        if axis != dim and index.shape[axis] > 1:
            shape = [-1 if each == axis else 1 for each in range(x.ndim)]
            flat = flat + (torch.arange(index.shape[axis]) * strides[axis]).reshape(shape)
    return torch.index_select(x.reshape(-1), 0, flat.reshape(-1)).reshape(index.shape)


@formula("unfold")
def _unfold(x: Tensor, dimension: int, size: int, step: int) -> Tensor:
    axis = dimension % x.ndim
    count = (x.shape[axis] - size) // step + 1
    parts = [torch.narrow(x, axis, start, (count - 1) * step + 1) for start in range(size)]
    return torch.stack([part[(slice(None),) * axis + (slice(None, None, step),)] for part in parts], -1)


@formula("repeat_interleave.self_int")
def _repeat_interleave(x: Tensor, repeats: int, dim: int | None) -> Tensor:
    x, axis = (x.reshape(-1), 0) if dim is None else (x, dim % x.ndim)
    return torch.stack([x] * repeats, axis + 1).flatten(axis, axis + 1)


@formula("diagonal")
def _diagonal(x: Tensor, offset: int, dim1: int, dim2: int) -> Tensor:
    last = torch.movedim(x, (dim1, dim2), (-2, -1))
    rows, columns = last.shape[-2:]
    count = min(rows - max(-offset, 0), columns - max(offset, 0))
    at = torch.arange(count) * (columns + 1) + max(-offset, 0) * columns + max(offset, 0)
    return torch.index_select(last.flatten(-2), -1, at)


def _by_mask(node: fx.Node) -> bool:
    given = arguments(node)
    masks = [index for index in given["indices"] if index is not None]
    return len(masks) == 1 and masks[0].meta["val"].dtype == torch.bool and not given["accumulate"]


@formula("index_put", "index_put_", when=_by_mask)
def _write_by_mask(x: Tensor, indices: Sequence[Tensor | None], values: Tensor) -> Tensor:
    axis = next(number for number, index in enumerate(indices) if index is not None)
    (mask,) = (index for index in indices if index is not None)
    if values.numel() != 1:
        raise ValueError("the number of values that a mask takes depends on values")
    shape = (*[1] * axis, *mask.shape, *[1] * (x.ndim - axis - mask.ndim))
    return torch.where(mask.reshape(shape), values, x)


@formula("sort")
def _sort(x: Tensor, dim: int, descending: bool) -> tuple[Tensor, Tensor]:
    return _smallest_or_largest(x, x.shape[dim], dim, descending)


@formula("topk", when=lambda node: not arguments(node)["largest"])
def _smallest(x: Tensor, k: int, dim: int) -> tuple[Tensor, Tensor]:
    return _smallest_or_largest(x, k, dim, False)


@formula("kthvalue")
def _kth(x: Tensor, k: int, dim: int, keepdim: bool) -> tuple[Tensor, Tensor]:
    found = (torch.narrow(part, dim, k - 1, 1) for part in _smallest_or_largest(x, k, dim, False))
    value, position = (part if keepdim else part.squeeze(dim) for part in found)
    return value, position


@formula("median.dim")
def _median(x: Tensor, dim: int, keepdim: bool) -> tuple[Tensor, Tensor]:
    return _kth(x, (x.shape[dim] + 1) // 2, dim, keepdim)


@formula("median.default")
def _median_of_all(x: Tensor) -> Tensor:
    return _median(x.reshape(-1), 0, False)[0]


def _smallest_or_largest(x: Tensor, k: int, dim: int, largest: bool) -> tuple[Tensor, Tensor]:
    values, positions = torch.topk(x if largest else -x, k, dim)
    return values if largest else -values, positions


@formula("argmax", when=lambda node: arguments(node)["dim"] is None)
def _argmax(x: Tensor, keepdim: bool) -> Tensor:
    return _shaped(torch.argmax(x.reshape(-1), 0), x, keepdim)


@formula("argmin", when=lambda node: arguments(node)["dim"] is None)
def _argmin(x: Tensor, keepdim: bool) -> Tensor:
    return _shaped(torch.argmin(x.reshape(-1), 0), x, keepdim)


def _shaped(found: Tensor, x: Tensor, keepdim: bool) -> Tensor:
    return found.reshape([1] * x.ndim) if keepdim else found


@formula("max.default")
def _max(x: Tensor) -> Tensor:
    return torch.amax(x)


@formula("min.default")
def _min(x: Tensor) -> Tensor:
    return torch.amin(x)


@formula("max.dim")
def _max_along(x: Tensor, dim: int, keepdim: bool) -> tuple[Tensor, Tensor]:
    return torch.amax(x, dim, keepdim), torch.argmax(x, dim, keepdim)


@formula("min.dim")
def _min_along(x: Tensor, dim: int, keepdim: bool) -> tuple[Tensor, Tensor]:
    return torch.amin(x, dim, keepdim), torch.argmin(x, dim, keepdim)


@formula("max.other")
def _max_of_two(x: Tensor, other: Tensor) -> Tensor:
    return torch.maximum(x, other)


@formula("min.other")
def _min_of_two(x: Tensor, other: Tensor) -> Tensor:
    return torch.minimum(x, other)


@formula("cumprod")
def _running_product(x: Tensor, dim: int) -> Tensor:
    return _running(x, dim, torch.mul, 1.0)


@formula("cummax")
def _running_maximum(x: Tensor, dim: int) -> tuple[Tensor, None]:
    return _running(x, dim, torch.maximum, -torch.inf), None


@formula("cummin")
def _running_minimum(x: Tensor, dim: int) -> tuple[Tensor, None]:
    return _running(x, dim, torch.minimum, torch.inf), None


def _running(x: Tensor, dim: int, combine: Callable[[Tensor, Tensor], Tensor], neutral: float) -> Tensor:
    """Combine each entry with those before it, over distances of 1, 2, 4, ..."""
    distance, size = 1, x.shape[dim]
    while distance < size:
        empty = torch.full_like(x.narrow(dim, 0, distance), neutral)
        x = combine(x, torch.cat([empty, x.narrow(dim, 0, size - distance)], dim))
        distance *= 2
    return x
