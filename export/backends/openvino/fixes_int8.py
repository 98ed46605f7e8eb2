"""What OpenVINO 2026.4 computes wrongly in int8: kept in float, or said in other words.

Found by fuzzing; `tests/export/backends/test_regressions.py` has the smallest program of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from hnas.export.backends.openvino.fixes import AVERAGES, PADS, PRODUCTS, TINY, spread
from hnas.export.graph.marks import FLOAT
from hnas.export.graph.nodes import (
    CONVOLUTIONS,
    LINEAR,
    TRANSPOSED,
    aten,
    bound,
    constant,
    constant_value,
    edit,
    is_floating,
    shape_of,
)
from hnas.export.graph.program import Program
from hnas.export.graph.samples import Arrays
from hnas.export.int8.calibration import observe

_FLAT = LINEAR | {aten.matmul.default, aten.mm.default}
_GROUPS: dict[Any, Callable[[Tensor, dict[str, Any]], Tensor]] = {  # to what is normed together: [groups, values]
    aten.layer_norm.default: lambda x, parts: x.flatten(-len(parts["normalized_shape"])),
    aten.group_norm.default: lambda x, parts: x.reshape(len(x) * parts["num_groups"], -1),
    aten.instance_norm.default: lambda x, _: x.flatten(2),
}
CLEAR_DB = 40.0  # about what int8 leaves of an activation


def spared(program: Program, data: Sequence[Arrays]) -> Program:
    """The program as it can be quantised for OpenVINO, judged on calibration ``data``."""
    return spare_norms(spare_pads(spare_kernels(keep_biases(program))), data)


def keep_biases(program: Program) -> Program:
    """Give a product of rank 2 that another one reads a bias where it has none, or one of zeros.

    In int8 OpenVINO makes one kernel of the two. Where nothing but a rectifier stands between them, the second reads
    the sums of the first before they are scaled: garbage, and another in every process. Any bias keeps the scale there;
    1e-30 is far below what any sum resolves, and not the same everywhere, or it would be taken for zero.
    """

    def rewrite(module: fx.GraphModule) -> int:
        found = [node for node in module.graph.nodes if _has_no_bias(module, node) and _feeds_product(node)]
        for node in found:
            bias = torch.full(shape_of(node)[-1:], TINY)
            bias[::2] = 0.0
            following = node.next
            value = constant(module, following, "no_bias", bias.to(node.meta["val"].dtype))
            with module.graph.inserting_before(following):
                total = module.graph.call_function(aten.add.Tensor, (node, value))
            total.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(total, delete_user_cb=lambda user, total=total: user is not total)
        return len(found)

    return edit(program, "keep_biases", rewrite)


def _has_no_bias(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.target not in _FLAT or not is_floating(node) or len(shape_of(node)) != 2:
        return False
    bias = bound(node).get("bias")
    return bias is None or (bias.op == "get_attr" and not constant_value(module, bias).any())


def _feeds_product(node: fx.Node) -> bool:
    """Whether a product reads the value, through functions of one value at most."""
    return any(
        user.target in _FLAT or (len(user.all_input_nodes) == 1 and is_floating(user) and _feeds_product(user))
        for user in node.users
    )


def spare_kernels(program: Program) -> Program:
    """Keep the layers in float whose int8 kernels are wrong wherever they stand."""

    def rewrite(module: fx.GraphModule) -> int:
        wrong = (_has_holes, _multiplies, _counts_padding)
        found = [node for node in module.graph.nodes if any(case(node) for case in wrong)]
        for node in found:
            node.meta[FLOAT] = True
        return len(found)

    return edit(program, "spare_kernels", rewrite)


def _has_holes(node: fx.Node) -> bool:
    """A transposed convolution whose stride is larger than its kernel.

    Its output has places that no product reaches, only the bias. In int8 OpenVINO puts something else there: 1 dB.
    """
    if node.target not in TRANSPOSED:
        return False
    parts = bound(node)
    kernel = shape_of(parts["weight"])[2:]
    strides, dilation = spread(parts["stride"], len(kernel)), spread(parts["dilation"], len(kernel))
    return any(stride > size or step > 1 for stride, size, step in zip(strides, kernel, dilation, strict=True))


def _multiplies(node: fx.Node) -> bool:
    """A padded convolution that makes several channels of each single one.

    In int8 it pads with the level 0, which is another value than 0 where activations are asymmetric: 15 dB.
    """
    if node.target not in CONVOLUTIONS:
        return False
    parts = bound(node)
    padded = any(spread(parts["padding"], 1)) or parts["input"].target in PADS
    outputs, inputs = shape_of(parts["weight"])[:2]
    return padded and inputs == 1 < parts["groups"] < outputs


def _counts_padding(node: fx.Node) -> bool:
    """An average that counts its padding: the level 0 again, 10 to 20 dB."""
    if node.target not in AVERAGES:
        return False
    parts = bound(node)
    return bool(parts["count_include_pad"]) and any(spread(parts["padding"], 1))


def spare_pads(program: Program) -> Program:
    """Keep a pad with another constant than 0 in float, with all that was done since the last products.

    In int8 it is quantised by the range of what it pads. Where that does not hold the constant, OpenVINO pads with
    something else: 13 dB.
    """

    def rewrite(module: fx.GraphModule) -> int:
        found = [node for node in module.graph.nodes if node.target in PADS and bound(node)["value"]]
        for part in {part for node in found for part in _since_product(node)}:
            part.meta[FLOAT] = True
        return len(found)

    return edit(program, "spare_pads", rewrite)


def spare_norms(program: Program, data: Sequence[Arrays]) -> Program:
    """Keep norms in float whose epsilon counts on calibration ``data``.

    In int8 OpenVINO norms the levels, which are about 1/scale times the values, and adds the epsilon of the values to
    their variance: nothing. A group of little variance comes out as large as any other; 0 dB where a map is nearly
    constant.

    1. Leaving the epsilon out costs more than ``CLEAR_DB``: in float, with all that was done since the last products.
    2. Else: int8.
    """

    def rewrite(module: fx.GraphModule) -> int:
        found = [node for node in module.graph.nodes if node.target in _GROUPS]
        sums = {node: [0.0, 0.0] for node in found}

        def see(name: str, value: Tensor) -> None:
            for node in found:
                if node.args[0].name == name:
                    variance = _GROUPS[node.target](value.double(), bound(node)).var(-1, correction=0)
                    kept = (variance / (variance + bound(node)["eps"])).sqrt()
                    sums[node][0] += float(kept.square().sum())
                    sums[node][1] += float((1 - kept[variance > 0]).square().sum())

        if found:
            observe(program, data, see)
        spared = [node for node, (signal, lost) in sums.items() if lost > signal * 10 ** (-CLEAR_DB / 10)]
        for node in spared:
            for part in _since_product(node):
                part.meta[FLOAT] = True
        return len(spared)

    return edit(program, "spare_norms", rewrite)


def _since_product(node: fx.Node) -> set[fx.Node]:
    """The node, and what it is made of up to the last products."""
    found: set[fx.Node] = set()
    left = [node]
    while left:
        part = left.pop()
        if part not in found and part.op == "call_function" and part.target not in PRODUCTS:
            found.add(part)
            left += part.all_input_nodes
    return found
