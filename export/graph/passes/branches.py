"""Merge parallel convolution branches into one convolution: ``merge_branches(program)``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from hnas.export.graph.nodes import (
    CONVOLUTION_RANKS,
    aten,
    bound,
    call,
    constant,
    constant_value,
    edit,
    is_floating,
    own_layer,
    per_dimension,
    prune,
    shape_of,
    substitute,
    weights,
)
from hnas.export.graph.passes.batchnorm import moments
from hnas.export.graph.program import Program


def merge_branches(program: Program) -> Program:
    """Re-parameterise parallel branches into one convolution (RepVGG, arXiv 2101.03697; ACNet, arXiv 1908.03930).

    1. A sum of any number of convolutions of the same input, with equal stride and groups: one convolution. Smaller
       kernels are padded with zeros to their place in the largest kernel.
    2. The input itself, or a batch norm of it, in the same sum, at stride 1: added to the centre tap of that
       convolution.
    3. The merged kernel would need more multiplications than its parts (1x3 + 3x1): unchanged.
    4. Dilations that differ, or kernels whose taps do not coincide: unchanged.
    5. A branch that another operator reads too, or whose weights are computed: not merged.
    """

    def rewrite(module: fx.GraphModule) -> int:
        sums = [node for node in module.graph.nodes if _is_sum(node)]
        roots = [node for node in sums if not any(_is_sum(user) and _inside(node, user) for user in node.users)]
        return sum(_merge_sum(module, root) for root in roots)

    return edit(program, "merge_branches", rewrite)


@dataclass(frozen=True)
class _Kernel:
    """Hold the numbers of a convolution: weight [O, I / groups, *k] and bias [O] in float64, padding and dilation."""

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
    """Return the terms of a nested sum, left to right."""
    found: list[fx.Node] = []
    for part in node.args[:2]:
        assert isinstance(part, fx.Node)
        found += _terms(part) if _is_sum(part) and _inside(part, node) else [part]
    return found


def _merge_sum(module: fx.GraphModule, root: fx.Node) -> int:
    """Merge the terms of the sum ``root``, and return how many additions were saved."""
    terms = _terms(root)
    kept, merged = list(terms), list[fx.Node]()
    for first in [term for term in terms if _is_plain(term)]:
        if first not in kept:
            continue
        group = [term for term in kept if _belongs(module, term, first)]
        kernel = _merged_kernel(module, group, first)
        if kernel is not None:
            kept = [term for term in kept if term not in group]
            merged.append(_convolution(module, root, first, kernel))
    if not merged:
        return 0
    _replace_sum(root, [*merged, *kept])
    return len(terms) - len(kept) - len(merged)


def _replace_sum(root: fx.Node, terms: Sequence[fx.Node]) -> None:
    """Replace the sum ``root`` by the sum of ``terms``, and remove the operators that nothing reads any more."""
    total, *rest = terms
    for term in rest:
        total = call(root, aten.add.Tensor, (total, term))
    parts = root.all_input_nodes
    substitute(root, total)
    for part in parts:
        prune(part)


def _belongs(module: fx.GraphModule, term: fx.Node, first: fx.Node) -> bool:
    """Return True where ``term`` can become a part of the convolution ``first``."""
    source, parts = first.args[0], bound(first)
    if _is_plain(term):  # case 1
        same = all(_each(term, name) == _each(first, name) for name in ("stride", "groups"))
        return same and term.args[0] is source
    if any(step != 1 for step in parts["stride"]):
        return False
    if term.target is aten.batch_norm.default:  # case 2
        return term.args[0] is source and len(term.users) == 1 and moments(module, term) is not None
    return term is source


def _is_plain(node: fx.Node) -> bool:
    """Return True for a convolution with constant weights, one reader (case 5) and a batch dimension."""
    return own_layer(node, frozenset(CONVOLUTION_RANKS)) and len(shape_of(node)) == CONVOLUTION_RANKS[node.target] + 2


def _each(layer: fx.Node, name: str) -> tuple[int, ...]:
    """Return an argument of a convolution as one number per dimension."""
    return tuple(per_dimension(bound(layer)[name], CONVOLUTION_RANKS[layer.target]))


def _merged_kernel(module: fx.GraphModule, group: Sequence[fx.Node], first: fx.Node) -> _Kernel | None:
    """Return the kernel that computes the sum of ``group``; None for one term, and in cases 3 and 4."""
    if len(group) < 2:
        return None
    kernel = _sum_of_kernels([_kernel(module, term, first) for term in group])
    if kernel is None or _output_sizes(kernel, first) != shape_of(first)[2:]:
        return None
    parts = sum(weights(module, term)[0].numel() for term in group if _is_plain(term))
    return kernel if kernel.weight.numel() <= parts else None  # case 3


def _kernel(module: fx.GraphModule, term: fx.Node, first: fx.Node) -> _Kernel:
    """Return a convolution, a batch norm or the input itself as a kernel."""
    if term.target in CONVOLUTION_RANKS and term is not first.args[0]:  # the input may be a convolution's output
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


def _sum_of_kernels(kernels: Sequence[_Kernel]) -> _Kernel | None:
    """Return the sum of ``kernels``; None where their taps do not coincide (case 4)."""
    rank = kernels[0].weight.ndim - 2
    padding = tuple(max(kernel.padding[axis] for kernel in kernels) for axis in range(rank))
    dilation = tuple(_dilation(kernels, axis) for axis in range(rank))
    starts = [_first_tap(kernel, padding, dilation) for kernel in kernels]
    placed = [(start, kernel) for start, kernel in zip(starts, kernels, strict=True) if start is not None]
    if len(placed) < len(kernels):
        return None
    sizes = [max(start[axis] + kernel.weight.shape[2 + axis] for start, kernel in placed) for axis in range(rank)]
    weight = torch.zeros((*kernels[0].weight.shape[:2], *sizes), dtype=torch.float64)
    for start, kernel in placed:
        window = [slice(at, at + size) for at, size in zip(start, kernel.weight.shape[2:], strict=True)]
        weight[(slice(None), slice(None), *window)] += kernel.weight
    return _Kernel(weight, torch.stack([kernel.bias for kernel in kernels]).sum(0), padding, dilation)


def _dilation(kernels: Sequence[_Kernel], axis: int) -> int:
    """Return the dilation of all kernels wider than one tap: 1 where there are none, 0 where they differ."""
    found = {kernel.dilation[axis] for kernel in kernels if kernel.weight.shape[2 + axis] > 1}
    return 0 if len(found) > 1 else found.pop() if found else 1


def _first_tap(kernel: _Kernel, padding: Sequence[int], dilation: Sequence[int]) -> list[int] | None:
    """Return the index of the first tap of ``kernel`` in the merged kernel; None where it lies between two taps."""
    gaps = [(big - own, step) for big, own, step in zip(padding, kernel.padding, dilation, strict=True)]
    if any(step == 0 or gap % step for gap, step in gaps):
        return None
    return [gap // step for gap, step in gaps]


def _output_sizes(kernel: _Kernel, first: fx.Node) -> tuple[int, ...]:
    """Return the spatial sizes that ``first`` would give with ``kernel``."""
    source = first.args[0]
    assert isinstance(source, fx.Node)
    steps = _each(first, "stride")
    taps, sizes = kernel.weight.shape[2:], shape_of(source)[2:]
    places = zip(sizes, kernel.padding, kernel.dilation, taps, steps, strict=True)
    return tuple((size + 2 * pad - gap * (tap - 1) - 1) // step + 1 for size, pad, gap, tap, step in places)


def _convolution(module: fx.GraphModule, root: fx.Node, first: fx.Node, kernel: _Kernel) -> fx.Node:
    """Insert the convolution of ``kernel`` before ``root``, with the stride and groups of ``first``."""
    parts = bound(first)
    old = parts["weight"]
    dtype = constant_value(module, old).dtype
    stem = str(old.target).replace(".", "_").removesuffix("_weight")
    weight = constant(module, root, f"{stem}_merged_weight", kernel.weight.to(dtype))
    bias = constant(module, root, f"{stem}_merged_bias", kernel.bias.to(dtype))
    places = (parts["stride"], list(kernel.padding), list(kernel.dilation), parts["groups"])
    return call(root, first.target, (first.args[0], weight, bias, *places))
