"""Work around ONNX Runtime 1.31 bugs: ``part_pads(program)``. Always applied, whatever passes are chosen."""

from __future__ import annotations

from torch import fx

from hnas.export.graph.nodes import aten, bound, edit
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


def _is_zero_pad(node: fx.Node) -> bool:
    if node.target not in _PADS:
        return False
    parts = bound(node)
    return parts.get("mode", "constant") == "constant" and not parts["value"]
