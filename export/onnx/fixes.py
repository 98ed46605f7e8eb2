"""What ONNX Runtime 1.31 computes wrongly, said in other words; not for speed, so no choice of passes leaves it out."""

from __future__ import annotations

from torch import fx

from hnas.export.graph.nodes import aten, bound, edit
from hnas.export.graph.program import Program

_PADS = {aten.pad.default, aten.constant_pad_nd.default}
_MAXIMA = {aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default}
_POOLS = _MAXIMA | {aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default}
TINY = 1e-30  # of a pad: not zero, and less than any sum resolves


def part_pads(program: Program) -> Program:
    """Keep a pad of zeros apart from the pooling that reads it.

    ONNX Runtime takes every such pad into the pooling's own padding, which a maximum leaves out: another output where
    values are negative (-2 dB), and a file that cannot be opened where the padding comes to the size of the window.
    Pads of anything else it leaves alone.
    """

    def rewrite(module: fx.GraphModule) -> int:
        pools = [node for node in module.graph.nodes if node.target in _POOLS]
        found = {pool.args[0] for pool in pools if _is_zero_pad(pool.args[0])}
        for node in found:
            node.args, node.kwargs = tuple((bound(node) | {"value": TINY}).values()), {}
        return len(found)

    return edit(program, "part_pads", rewrite)


def _is_zero_pad(node: fx.Node) -> bool:
    if node.target not in _PADS:
        return False
    parts = bound(node)
    return parts.get("mode", "constant") == "constant" and not parts["value"]
