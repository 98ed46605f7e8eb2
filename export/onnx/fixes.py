"""Work around limits of ONNX Runtime and torch.onnx: ``part_pads(program)``. Always applied, with any passes."""

from __future__ import annotations

from math import prod

from torch import fx

from hnas.export.graph.nodes import aten, bound, call, edit, shape_of, substitute
from hnas.export.graph.program import Program

_PADS = {aten.pad.default, aten.constant_pad_nd.default}
_MAXIMA = {aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default}
_POOLS = _MAXIMA | {aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default}
_TINY = 1e-30  # a pad value that is not zero, but numerically negligible


def part_pads(program: Program) -> Program:
    """Stop ONNX Runtime from fusing a zero pad into the pooling that reads it.

    ONNX Runtime replaces such a pad by the pooling's own padding, which a maximum ignores. The output differs if
    values are negative (SQNR -2 dB). The file cannot be opened if the padding is as large as the window.

    1. A pad of zeros before a max or average pool: padded with 1e-30 instead, which ONNX Runtime does not fuse.
    2. Any other pad: unchanged.
    """

    def rewrite(module: fx.GraphModule) -> int:
        pools = [node for node in module.graph.nodes if node.target in _POOLS]
        found = {pool.args[0] for pool in pools if _is_zero_pad(pool.args[0])}  # case 1; others are case 2
        for node in found:
            node.args, node.kwargs = tuple((bound(node) | {"value": _TINY}).values()), {}
        return len(found)

    return edit(program, "part_pads", rewrite)


def flatten_attention(program: Program) -> Program:
    """Give attention four dimensions, because torch.onnx exports no others.

    1. Without a mask, more or fewer than four dimensions: the leading ones are joined, or one is added.
    2. With a mask, or four dimensions already: unchanged.
    """

    def rewrite(module: fx.GraphModule) -> int:
        calls = [node for node in module.graph.nodes if node.target is aten.scaled_dot_product_attention.default]
        found = [node for node in calls if len(shape_of(node)) != 4 and bound(node)["attn_mask"] is None]
        for node in found:  # case 1; others are case 2
            shape, parts = shape_of(node), bound(node)
            for name in ("query", "key", "value"):
                inner = (1, *shape_of(parts[name]))[-3:]
                parts[name] = call(
                    node, aten.reshape.default, (parts[name], [-1, *inner]), _joined(shape_of(parts[name]))
                )
            attention = call(node, node.target, tuple(parts.values())[:6], _joined(shape))
            attention.kwargs = {name: parts[name] for name in ("scale", "enable_gqa")}
            substitute(node, call(node, aten.reshape.default, (attention, [-1, *shape[1:]])))
        return len(found)

    return edit(program, "flatten_attention", rewrite)


def _joined(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape with its leading dimensions joined, or with ones before it, so that it has four."""
    return (*[1] * (4 - len(shape)), prod(shape[: max(0, len(shape) - 3)]), *shape[-3:])[-4:]


def _is_zero_pad(node: fx.Node) -> bool:
    if node.target not in _PADS:
        return False
    parts = bound(node)
    return parts.get("mode", "constant") == "constant" and not parts["value"]
