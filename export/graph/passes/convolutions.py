"""Convolutions take in what stands around them: pads, and parallel branches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from hnas.export.graph.nodes import (
    aten,
    bound,
    call,
    constant,
    constant_value,
    edit,
    is_floating,
    own_layer,
    prune,
    shape_of,
    substitute,
    weights,
)
from hnas.export.graph.passes.scales import moments
from hnas.export.graph.program import Program

_PLAIN: dict[Any, int] = {aten.conv1d.default: 1, aten.conv2d.default: 2, aten.conv3d.default: 3}  # to dimensions
_POOLS: dict[Any, int] = {aten.avg_pool1d.default: 1, aten.avg_pool2d.default: 2, aten.avg_pool3d.default: 3}


def fold_pads(program: Program) -> Program:
    """Let a convolution pad for itself.

    1. Zeros, as many on both sides of a dimension, before a convolution: added to its own padding.
    2. The same before an average pool that counts its padding: likewise, where the pool may pad that much.
    3. More on one side than on the other, another value, reflection, replication: left alone.
    4. Something else reads the padded map: the convolution pads for itself, the pad stays for the others.
    5. A pad by nothing: goes.
    """

    def rewrite(module: fx.GraphModule) -> int:
        pads = [node for node in module.graph.nodes if node.target in (aten.pad.default, aten.constant_pad_nd.default)]
        return sum(_fold_pad(node) for node in pads)

    return edit(program, "fold_pads", rewrite)


def _fold_pad(node: fx.Node) -> int:
    values, source = bound(node), node.args[0]
    assert isinstance(source, fx.Node)
    if not any(values["pad"]):
        substitute(node, source)
        return 1
    lows, highs = list(values["pad"][0::2])[::-1], list(values["pad"][1::2])[::-1]
    zeros = values.get("mode", "constant") == "constant" and not values["value"]
    if not zeros or lows != highs or min(lows) < 0:
        return 0
    fired = 0
    for user in list(node.users):
        if user.args[0] is node and (padding := _padding(user, lows)) is not None:
            parts = {**bound(user), "padding": padding}
            user.args, user.kwargs = (source, *list(parts.values())[1:]), {}
            fired += 1
    prune(node)
    return fired


def _padding(user: fx.Node, added: list[int]) -> list[int] | None:
    """The padding of ``user`` with ``added`` to it, one number a dimension; None where it cannot take it."""
    parts, rank = bound(user), {**_PLAIN, **_POOLS}.get(user.target, 0)
    if not rank or len(shape_of(user)) != rank + 2 or len(added) > rank:
        return None
    sizes = [1 << 30] * rank  # a convolution may pad by any number, a pool by half of its size
    if user.target in _POOLS:
        if not parts["count_include_pad"] or parts["ceil_mode"]:
            return None
        sizes = _spread(parts["kernel_size"], rank)
    wide = [0] * (rank - len(added)) + added
    total = [own + more for own, more in zip(_spread(parts["padding"], rank), wide, strict=True)]
    return total if all(pad <= size // 2 for pad, size in zip(total, sizes, strict=True)) else None


def _spread(value: Any, rank: int) -> list[int]:
    """One number a dimension, where torch allows one for all."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    return values * rank if len(values) == 1 else values


def merge_branches(program: Program) -> Program:
    """Re-parameterise parallel branches into one convolution (RepVGG, arXiv 2101.03697; ACNet, arXiv 1908.03930).

    1. Convolutions of the same input that are added, of one stride and as many groups: one convolution, the smaller
       kernels padded with zeros to where they lie in the largest. Any sum of any number of terms.
    2. With them the input itself, or a batch norm of it: the centre tap of the same convolution.
    3. The merged kernel would take more multiplications than its parts (1x3 + 3x1): left alone.
    4. Dilations that differ, kernels that do not come to lie on the same taps: left alone.
    5. A branch is read elsewhere, or its weights are computed: it stays as it is.
    """

    def rewrite(module: fx.GraphModule) -> int:
        sums = [node for node in module.graph.nodes if _is_sum(node)]
        roots = [node for node in sums if not any(_is_sum(user) and _inside(node, user) for user in node.users)]
        return sum(_merge_sum(module, root) for root in roots)

    return edit(program, "merge_branches", rewrite)


@dataclass(frozen=True)
class _Kernel:
    """A convolution as numbers: weight [O, I / groups, *k] and bias in float64, and where its taps lie."""

    weight: Tensor
    bias: Tensor
    padding: tuple[int, ...]
    dilation: tuple[int, ...]


def _is_sum(node: fx.Node) -> bool:
    if node.target is not aten.add.Tensor or not is_floating(node) or bound(node)["alpha"] != 1:
        return False
    return all(isinstance(part, fx.Node) and shape_of(part) == shape_of(node) for part in node.args[:2])


def _inside(node: fx.Node, outer: fx.Node) -> bool:
    return len(node.users) == 1 and shape_of(node) == shape_of(outer)


def _terms(node: fx.Node) -> list[fx.Node]:
    """What is added up in the end, left to right."""
    found: list[fx.Node] = []
    for part in node.args[:2]:
        assert isinstance(part, fx.Node)
        found += _terms(part) if _is_sum(part) and _inside(part, node) else [part]
    return found


def _merge_sum(module: fx.GraphModule, root: fx.Node) -> int:
    terms = _terms(root)
    kept, merged = list(terms), list[fx.Node]()
    for first in [term for term in terms if _is_plain(term)]:
        group = [term for term in kept if _belongs(module, term, first)] if first in kept else []
        kernel = _combined([_kernel(module, term, first) for term in group], first) if len(group) > 1 else None
        least = sum(weights(module, term)[0].numel() for term in group if _is_plain(term))
        if kernel is not None and kernel.weight.numel() <= least:
            kept = [term for term in kept if term not in group]
            merged.append(_convolution(module, root, first, kernel))
    if not merged:
        return 0
    total, *rest = *merged, *kept
    for term in rest:
        total = call(root, aten.add.Tensor, (total, term))
    parts = root.all_input_nodes
    substitute(root, total)
    for part in parts:
        prune(part)
    return len(terms) - len(kept) - len(merged)


def _belongs(module: fx.GraphModule, term: fx.Node, first: fx.Node) -> bool:
    """True where ``term`` can be a part of the convolution that ``first`` grows into."""
    source, parts = first.args[0], bound(first)
    if _is_plain(term):
        same = all(_each(term, name) == _each(first, name) for name in ("stride", "groups"))
        return same and term.args[0] is source
    if any(step != 1 for step in parts["stride"]):
        return False
    if term.target is aten.batch_norm.default:
        return term.args[0] is source and len(term.users) == 1 and moments(module, term) is not None
    return term is source


def _is_plain(node: fx.Node) -> bool:
    return own_layer(node, frozenset(_PLAIN)) and len(shape_of(node)) == _PLAIN[node.target] + 2


def _each(layer: fx.Node, name: str) -> tuple[int, ...]:
    """A convolution's argument, one number a dimension."""
    return tuple(_spread(bound(layer)[name], _PLAIN[layer.target]))


def _kernel(module: fx.GraphModule, term: fx.Node, first: fx.Node) -> _Kernel:
    if term.target in _PLAIN and term is not first.args[0]:  # the input itself may be what a convolution gave
        weight, bias = weights(module, term)
        return _Kernel(weight, bias.expand(weight.shape[0]), _each(term, "padding"), _each(term, "dilation"))
    like, _ = weights(module, first)
    channels, width, rank = like.shape[0], like.shape[1], like.ndim - 2
    one, zero = torch.ones(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    scale, shift = (moments(module, term) if term.target is aten.batch_norm.default else None) or (one, zero)
    weight = torch.zeros(channels, width, *[1] * rank, dtype=torch.float64)
    index = torch.arange(channels)
    weight[index, index % width] = scale.reshape(-1, *[1] * rank)
    return _Kernel(weight, shift, (0,) * rank, (1,) * rank)


def _combined(kernels: list[_Kernel], first: fx.Node) -> _Kernel | None:
    """The sum of ``kernels``; None where their taps do not meet."""
    rank = kernels[0].weight.ndim - 2
    padding = tuple(max(kernel.padding[axis] for kernel in kernels) for axis in range(rank))
    dilation = tuple(_dilation(kernels, axis) for axis in range(rank))
    starts = []
    for kernel in kernels:
        gaps = [(big - own, step) for big, own, step in zip(padding, kernel.padding, dilation, strict=True)]
        if any(step == 0 or gap % step for gap, step in gaps):
            return None
        starts.append([gap // step for gap, step in gaps])
    sizes = [
        max(start[axis] + kernel.weight.shape[2 + axis] for start, kernel in zip(starts, kernels, strict=True))
        for axis in range(rank)
    ]
    weight = torch.zeros((*kernels[0].weight.shape[:2], *sizes), dtype=torch.float64)
    for start, kernel in zip(starts, kernels, strict=True):
        window = [slice(at, at + size) for at, size in zip(start, kernel.weight.shape[2:], strict=True)]
        weight[(slice(None), slice(None), *window)] += kernel.weight
    found = _Kernel(weight, torch.stack([kernel.bias for kernel in kernels]).sum(0), padding, dilation)
    return found if _output(found, first) == shape_of(first)[2:] else None


def _dilation(kernels: list[_Kernel], axis: int) -> int:
    """What all kernels wider than one tap have in this dimension: 1 where there is none, 0 where they differ."""
    found = {kernel.dilation[axis] for kernel in kernels if kernel.weight.shape[2 + axis] > 1}
    return 0 if len(found) > 1 else found.pop() if found else 1


def _output(kernel: _Kernel, first: fx.Node) -> tuple[int, ...]:
    source = first.args[0]
    assert isinstance(source, fx.Node)
    steps = _each(first, "stride")
    taps, sizes = kernel.weight.shape[2:], shape_of(source)[2:]
    places = zip(sizes, kernel.padding, kernel.dilation, taps, steps, strict=True)
    return tuple((size + 2 * pad - gap * (tap - 1) - 1) // step + 1 for size, pad, gap, tap, step in places)


def _convolution(module: fx.GraphModule, root: fx.Node, first: fx.Node, kernel: _Kernel) -> fx.Node:
    parts = bound(first)
    old = parts["weight"]
    dtype = constant_value(module, old).dtype
    stem = str(old.target).replace(".", "_").removesuffix("_weight")
    weight = constant(module, root, f"{stem}_merged_weight", kernel.weight.to(dtype))
    bias = constant(module, root, f"{stem}_merged_bias", kernel.bias.to(dtype))
    places = (parts["stride"], list(kernel.padding), list(kernel.dilation), parts["groups"])
    return call(root, first.target, (first.args[0], weight, bias, *places))
