"""Read by index tensors through one flat index: OpenVINO 2026.4 does not convert them where a rank is dynamic."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import torch
from torch import fx

from hnas.export.graph.nodes import aten, call, edit, shape_of, substitute
from hnas.export.graph.program import Program


def flatten_indices(program: Program) -> Program:
    """Replace ``x[i, j]`` by one selection along the merged axes of ``i`` and ``j``.

    Masks of text models are read this way: ``mask[batch[:, None], position]``.

    1. Integer index tensors: the flat index is ``i * size_of_j + j``, after negative indices are wrapped.
    2. The indexed axes are not neighbours: they are moved to the front first, where torch puts the result too.
    3. A boolean index: unchanged.
    """

    def rewrite(module: fx.GraphModule) -> int:
        found = [node for node in module.graph.nodes if node.target is aten.index.Tensor and _is_integer(node)]
        for node in found:
            _flatten(node)
        return len(found)

    return edit(program, "flatten_indices", rewrite)


def _is_integer(node: Any) -> bool:
    """Return whether a node is of case 1."""
    indices = [index for index in node.args[1] if index is not None]
    return all(index.meta["val"].dtype in (torch.int64, torch.int32) for index in indices)


def _flatten(node: Any) -> None:
    source, given = node.args
    axes = [axis for axis, index in enumerate(given) if index is not None]
    first = axes[0]
    shape = shape_of(source)
    if axes != list(range(first, first + len(axes))):  # case 2
        order = [*axes, *(axis for axis in range(len(shape)) if axis not in axes)]
        first, shape = 0, tuple(shape[axis] for axis in order)
        source = call(node, aten.permute.default, (source, order), shape)
    before, sizes, after = shape[:first], shape[first : first + len(axes)], shape[first + len(axes) :]
    flat: fx.Node | None = None
    where = np.broadcast_shapes(*(shape_of(given[axis]) for axis in axes))
    for axis, size, stride in zip(axes, sizes, [prod(sizes[k + 1 :]) for k in range(len(sizes))], strict=True):
        part = _integers(node, aten.remainder.Scalar, (given[axis], size), shape_of(given[axis]))
        part = part if stride == 1 else _integers(node, aten.mul.Tensor, (part, stride), shape_of(given[axis]))
        flat = part if flat is None else _integers(node, aten.add.Tensor, (flat, part), where)
    flat = _integers(node, aten.reshape.default, (flat, [-1]), (prod(where),))
    merged = call(node, aten.reshape.default, (source, [*before, prod(sizes), *after]), (*before, prod(sizes), *after))
    chosen = call(node, aten.index_select.default, (merged, first, flat), (*before, prod(where), *after))
    substitute(node, call(node, aten.reshape.default, (chosen, [*before, *where, *after])))


def _integers(node: fx.Node, target: object, args: tuple[object, ...], shape: tuple[int, ...]) -> fx.Node:
    """Insert a call whose value is int64."""
    made = call(node, target, args)
    made.meta["val"] = torch.empty(shape, dtype=torch.int64, device="meta")
    return made
