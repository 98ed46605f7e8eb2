"""Fold zero padding into the convolution or pool that reads it: ``fold_pads(program)``."""

from __future__ import annotations

from typing import Any

from torch import fx

from hnas.export.graph.nodes import CONVOLUTION_RANKS, aten, bound, edit, per_dimension, prune, shape_of, substitute
from hnas.export.graph.program import Program

_PADS = {aten.pad.default, aten.constant_pad_nd.default}
_POOL_RANKS: dict[Any, int] = {aten.avg_pool1d.default: 1, aten.avg_pool2d.default: 2, aten.avg_pool3d.default: 3}


def fold_pads(program: Program) -> Program:
    """Move zero padding into the operator that reads it.

    1. The same number of zeros on both sides of each dimension, before a convolution: added to its padding.
    2. The same before an average pool that counts its padding: added to the pool's padding, up to half of its kernel.
    3. Unequal sides, negative sizes, another value, reflection, replication: unchanged.
    4. Another operator reads the padded map too: folded, and the pad stays for that operator.
    5. A pad by zero elements: removed.
    """

    def rewrite(module: fx.GraphModule) -> int:
        return sum(_fold_pad(node) for node in list(module.graph.nodes) if node.target in _PADS)

    return edit(program, "fold_pads", rewrite)


def _fold_pad(node: fx.Node) -> int:
    values, source = bound(node), node.args[0]
    assert isinstance(source, fx.Node)
    if not any(values["pad"]):  # case 5
        substitute(node, source)
        return 1
    lows, highs = list(values["pad"][0::2])[::-1], list(values["pad"][1::2])[::-1]
    zeros = values.get("mode", "constant") == "constant" and not values["value"]
    if not zeros or lows != highs or min(lows) < 0:  # case 3
        return 0
    fired = 0
    for user in list(node.users):
        if user.args[0] is node and (padding := _total_padding(user, lows)) is not None:
            parts = {**bound(user), "padding": padding}
            user.args, user.kwargs = (source, *list(parts.values())[1:]), {}
            fired += 1
    prune(node)  # case 4: only where no reader is left
    return fired


def _total_padding(user: fx.Node, added: list[int]) -> list[int] | None:
    """Return the padding of ``user`` plus ``added``, one number per dimension; None if ``user`` cannot pad so."""
    parts, rank = bound(user), {**CONVOLUTION_RANKS, **_POOL_RANKS}.get(user.target, 0)
    if not rank or len(shape_of(user)) != rank + 2 or len(added) > rank:
        return None
    sizes = [1 << 30] * rank  # case 1: a convolution may pad by any number
    if user.target in _POOL_RANKS:  # case 2: a pool may pad by half of its kernel
        if not parts["count_include_pad"] or parts["ceil_mode"]:
            return None
        sizes = per_dimension(parts["kernel_size"], rank)
    wide = [0] * (rank - len(added)) + added
    total = [own + more for own, more in zip(per_dimension(parts["padding"], rank), wide, strict=True)]
    return total if all(pad <= size // 2 for pad, size in zip(total, sizes, strict=True)) else None
