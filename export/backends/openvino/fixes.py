"""Work around OpenVINO 2026.4 bugs of all precisions. Always applied, whatever passes are chosen.

Call ``apply_fixes(program)``. Fuzzing found each bug. `tests/export/backends/test_regressions.py` has the smallest
program that shows each bug. Figures in dB are the SQNR of the output without the workaround.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from hnas.export.backends.openvino.biases import TINY, part_products
from hnas.export.backends.openvino.fixes_index import flatten_indices
from hnas.export.graph.nodes import (
    CONVOLUTIONS,
    LINEAR,
    TRANSPOSED,
    aten,
    bound,
    call,
    constant,
    constant_value,
    edit,
    is_floating,
    shape_of,
    substitute,
)
from hnas.export.graph.program import Program

_PLAIN: dict[Any, int] = {aten.conv1d.default: 1, aten.conv2d.default: 2, aten.conv3d.default: 3}  # to dimensions
_PADDING_AS_TEXT = {aten.conv1d.padding: aten.conv1d.default, aten.conv2d.padding: aten.conv2d.default}
PADS = {aten.pad.default, aten.constant_pad_nd.default}
PRODUCTS = CONVOLUTIONS | TRANSPOSED | LINEAR | {aten.matmul.default, aten.bmm.default, aten.addmm.default}
AVERAGES = {aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default}
_POOLS: dict[Any, int] = {  # to dimensions
    aten.max_pool1d.default: 1,
    aten.max_pool2d.default: 2,
    aten.max_pool3d.default: 3,
    aten.avg_pool1d.default: 1,
    aten.avg_pool2d.default: 2,
    aten.avg_pool3d.default: 3,
}
_ATTENTION = {aten.matmul.default, aten.scaled_dot_product_attention.default}
_SUMS = {aten.add.Tensor, aten.sub.Tensor}
_AFFINE = {*_SUMS, aten.mul.Tensor, aten.div.Tensor, aten.neg.default, aten.batch_norm.default}


def apply_fixes(program: Program) -> Program:
    """Apply every workaround; a program that needs none is returned unchanged."""
    for fix in _FIXES:
        program = fix(program)
    return program


def _spell_padding(program: Program) -> Program:
    """Replace the padding "same" and "valid" of a convolution by numbers.

    1. "valid": 0.
    2. "same", equal on both sides of every dimension: that number.
    3. "same" with an even kernel: a pad before the convolution, with the additional zero at the end, as torch does.

    OpenVINO folds a pad into a convolution with padding "same", and loses the pad: the output is too small.
    """

    def rewrite(module: fx.GraphModule) -> int:
        found = [node for node in module.graph.nodes if node.target in _PADDING_AS_TEXT]
        for node in found:
            parts, target = bound(node), _PADDING_AS_TEXT[node.target]
            rank, source = _PLAIN[target], node.args[0]
            kernel, dilation = shape_of(parts["weight"])[2:], spread(parts["dilation"], rank)
            total = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
            if parts["padding"] == "valid":  # case 1
                total = [0] * rank
            if any(size % 2 for size in total):  # case 3
                sides = [side for size in reversed(total) for side in (size // 2, size - size // 2)]
                shape = shape_of(source)
                wide = [*shape[:-rank], *(a + b for a, b in zip(shape[-rank:], total, strict=True))]
                parts["input"], total = call(node, aten.pad.default, (source, sides), wide), [0] * rank
            parts["padding"] = [size // 2 for size in total]  # case 2
            node.target, node.args, node.kwargs = target, tuple(parts.values()), {}
        return len(found)

    return edit(program, "spell_padding", rewrite)


def _widen_points(program: Program) -> Program:
    """Extend a strided 1x1 convolution on a padded map to a 3x3 kernel, with zeros around its weight.

    1. 1x1, a stride above 1, and own padding or a pad before the convolution: 3x3, with padding increased by one.
    2. Everything else: unchanged.

    OpenVINO moves the stride of a 1x1 convolution to the operator before it, and ignores the padding: wrong output. The
    new layer needs nine times the multiplications, but such layers are rare.
    """

    def rewrite(module: fx.GraphModule) -> int:
        found = [node for node in module.graph.nodes if node.target in _PLAIN and _is_padded_point(module, node)]
        for node in found:
            parts, rank = bound(node), _PLAIN[node.target]
            wide = F.pad(constant_value(module, parts["weight"]), (1, 1) * rank)
            name = str(parts["weight"].target).replace(".", "_")
            parts["weight"] = constant(module, node, f"{name}_wide", wide)
            parts["padding"] = [size + 1 for size in spread(parts["padding"], rank)]
            parts["dilation"] = [1] * rank
            node.args, node.kwargs = tuple(parts.values()), {}
        return len(found)

    return edit(program, "widen_points", rewrite)


def _is_padded_point(module: fx.GraphModule, node: fx.Node) -> bool:
    parts, source = bound(node), node.args[0]
    if parts["weight"].op != "get_attr" or max(spread(parts["stride"], 1)) == 1:
        return False
    padded = any(spread(parts["padding"], 1)) or getattr(source, "target", None) in PADS
    return padded and set(constant_value(module, parts["weight"]).shape[2:]) == {1}


def _part_sums(program: Program) -> Program:
    """Stop OpenVINO from fusing a sum with its convolution if both read the same map.

    1. x + conv(y), where y is computed from x by reshapes, norms and activations and has another rank on the way: both
       summands are flattened to [N, C, positions] before the sum, and the sum is reshaped back.
    2. A product between x and y, or the same rank throughout: unchanged.

    In OpenVINO, the convolution adds into the memory of x, which the reshaped values share: 2 dB.
    """

    def rewrite(module: fx.GraphModule) -> int:
        found = [node for node in module.graph.nodes if _adds_what_it_read(node)]
        for node in found:
            shape = shape_of(node)
            flat = (*shape[:2], -1)
            size = (*shape[:2], node.meta["val"][0, 0].numel())
            sides = tuple(call(node, aten.reshape.default, (side, list(flat)), size) for side in node.args[:2])
            total = call(node, node.target, (*sides, *node.args[2:]), size)
            total.kwargs = dict(node.kwargs)
            substitute(node, call(node, aten.reshape.default, (total, list(shape)), shape))
        return len(found)

    return edit(program, "part_sums", rewrite)


def _adds_what_it_read(node: fx.Node) -> bool:
    if node.target not in _SUMS or not is_floating(node) or len(shape_of(node)) < 4:
        return False
    one, other = node.args[:2]
    if not all(isinstance(side, fx.Node) and shape_of(side) == shape_of(node) for side in (one, other)):
        return False
    return _reads_as_tokens(_layer(one), other) or _reads_as_tokens(_layer(other), one)


def _layer(node: Any) -> Any:
    """Return the convolution behind scales, shifts and norms, which OpenVINO folds into it; else the node itself."""
    while node.target in _AFFINE and all(part.op == "get_attr" for part in node.all_input_nodes[1:]):
        node = node.args[0]
    return node


def _reads_as_tokens(convolution: fx.Node, source: Any) -> bool:
    """Return whether the convolution's input is ``source`` through another rank, without a product between."""
    if convolution.target not in CONVOLUTIONS:
        return False
    rank, numel = len(shape_of(source)), source.meta["val"].numel()
    seen: set[tuple[fx.Node, bool]] = set()
    left = [(convolution.args[0], False)]
    while left:
        node, changed = left.pop()
        if not isinstance(node, fx.Node) or (node, changed) in seen:
            continue
        seen.add((node, changed))
        if node is source:
            if changed:
                return True
            continue
        if not is_floating(node) or node.target in PRODUCTS or node.meta["val"].numel() != numel:
            continue
        changed = changed or len(shape_of(node)) != rank
        left += [(part, changed) for part in node.all_input_nodes]
    return False


def _shrink_windows(program: Program) -> Program:
    """Reduce a pooling window that is larger than the padded map, which OpenVINO refuses.

    torch allows such windows if output sizes are rounded up, and cuts the window at the end of the map.

    1. Without dilation: the window is reduced to the size of the padded map.
    2. With dilation: unchanged.
    """

    def rewrite(module: fx.GraphModule) -> int:
        found = [node for node in module.graph.nodes if node.target in _POOLS]
        return sum(_shrink(node, _POOLS[node.target]) for node in found)

    return edit(program, "shrink_windows", rewrite)


def _shrink(node: fx.Node, rank: int) -> bool:
    parts = bound(node)
    sizes = shape_of(parts["self"])[-rank:]
    kernel = spread(parts["kernel_size"], rank)
    reach = [size + 2 * pad for size, pad in zip(sizes, spread(parts["padding"], rank), strict=True)]
    if all(a <= b for a, b in zip(kernel, reach, strict=True)) or max(spread(parts.get("dilation", 1), 1)) > 1:
        return False
    parts["stride"] = parts["stride"] or kernel
    parts["kernel_size"] = [min(pair) for pair in zip(kernel, reach, strict=True)]
    node.args, node.kwargs = tuple(parts.values()), {}
    return True


def _pad_averages(program: Program) -> Program:
    """Pad the map before an average pooling that counts its padding and rounds output sizes up.

    1. The last window extends beyond the padded map: a pad of zeros before the pooling, which then pads nothing.
    2. No window extends beyond it: unchanged.

    OpenVINO divides by the size of the whole window, torch by that of the part inside the padded map: 5 to 15 dB.
    """

    def rewrite(module: fx.GraphModule) -> int:
        found = [node for node in module.graph.nodes if node.target in AVERAGES]
        return sum(_pad_average(node, _POOLS[node.target]) for node in found)

    return edit(program, "pad_averages", rewrite)


def _pad_average(node: fx.Node, rank: int) -> bool:
    parts = bound(node)
    shape = shape_of(parts["self"])
    kernel, pads = spread(parts["kernel_size"], rank), spread(parts["padding"], rank)
    strides = spread(parts["stride"] or kernel, rank)
    ends = [step * (count - 1) for step, count in zip(strides, shape_of(node)[-rank:], strict=True)]
    over = [end + width - pad - size for end, width, pad, size in zip(ends, kernel, pads, shape[-rank:], strict=True)]
    if not any(pads) or not parts["count_include_pad"] or all(a <= b for a, b in zip(over, pads, strict=True)):
        return False
    after = [min(pair) for pair in zip(pads, over, strict=True)]
    wide = [*shape[:-rank], *map(sum, zip(shape[-rank:], pads, after, strict=True))]
    sides = [side for pair in zip(reversed(pads), reversed(after), strict=True) for side in pair]
    parts |= {"self": call(node, aten.pad.default, (parts["self"], sides), wide), "padding": [0] * rank}
    parts["stride"] = strides
    node.args, node.kwargs = tuple(parts.values()), {}
    return True


def _raise_single(program: Program) -> Program:
    """Compute linear layers with one input and one output feature on three dimensions.

    OpenVINO cannot open a file with two consecutive products of shape [N, 1].
    """

    def rewrite(module: fx.GraphModule) -> int:
        found = [node for node in module.graph.nodes if node.target in LINEAR and _is_single(node)]
        for node in found:
            shape = shape_of(node)
            source = call(node, aten.reshape.default, (node.args[0], [1, *shape]), (1, *shape))
            product = call(node, node.target, (source, *node.args[1:]), (1, *shape))
            substitute(node, call(node, aten.reshape.default, (product, list(shape)), shape))
        return len(found)

    return edit(program, "raise_single", rewrite)


def _is_single(node: fx.Node) -> bool:
    return len(shape_of(node)) == 2 and shape_of(bound(node)["weight"]) == (1, 1)


def _part_heads(program: Program) -> Program:
    """Add 1e-30 before and after an attention [N, heads, tokens, size] that has as many heads as tokens.

    OpenVINO's attention absorbs the transpositions around it. With as many heads as tokens, OpenVINO does not detect
    whether the result is transposed, and exchanges the two axes without an error: 3 to 20 dB.
    """

    def rewrite(module: fx.GraphModule) -> int:
        found = [node for node in module.graph.nodes if node.target in _ATTENTION and _is_square(node)]
        for node in found:
            node.args = (_apart(module, node, node.args[0]), *node.args[1:])
            total = _apart(module, node.next, node)
            node.replace_all_uses_with(total, delete_user_cb=lambda user, total=total: user is not total)
        return len(found)

    return edit(program, "part_heads", rewrite)


def _is_square(node: fx.Node) -> bool:
    shape = shape_of(node)
    return len(shape) == 4 and shape[1] == shape[2] > 1 and is_floating(node)


def _apart(module: fx.GraphModule, before: fx.Node, node: Any) -> fx.Node:
    """Add a negligible constant that stops a fusion. A uniform constant would be optimised away."""
    tiny = torch.zeros(shape_of(node)[-2], 1, dtype=node.meta["val"].dtype)
    tiny[::2] = TINY
    value = constant(module, before, "apart", tiny)
    with module.graph.inserting_before(before):
        total = module.graph.call_function(aten.add.Tensor, (node, value))
    total.meta["val"] = node.meta["val"]
    return total


def spread(value: Any, rank: int) -> list[int]:
    """Return one number for each dimension. torch also allows one number for all; padding may be one text."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    return values * rank if len(values) == 1 else values


_FIXES = (
    flatten_indices,
    _spell_padding,
    _pad_averages,
    _shrink_windows,
    _widen_points,
    _part_sums,
    _raise_single,
    _part_heads,
    part_products,
)
