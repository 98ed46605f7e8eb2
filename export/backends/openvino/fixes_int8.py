"""Workarounds for OpenVINO 2026.4 bugs in int8: keep operators in float, or rewrite them. Always applied.

Call ``apply_int8_fixes(program, samples)``. Each bug was found by fuzzing. The smallest program that shows it is in
`tests/export/backends/test_regressions.py`.
"""

from __future__ import annotations

from collections.abc import Callable
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
from hnas.export.graph.samples import Samples
from hnas.export.int8.calibration import observe

_FLAT = LINEAR | {aten.matmul.default, aten.mm.default}
# Values that are normalised together: [groups, values].
_GROUPS: dict[Any, Callable[[Tensor, dict[str, Any]], Tensor]] = {
    aten.layer_norm.default: lambda x, parts: x.flatten(-len(parts["normalized_shape"])),
    aten.group_norm.default: lambda x, parts: x.reshape(len(x) * parts["num_groups"], -1),
    aten.instance_norm.default: lambda x, _: x.flatten(2),
}
_CLEAR_DB = 40.0  # about the SQNR of an activation in int8


def apply_int8_fixes(program: Program, samples: Samples) -> Program:
    """Prepare a program for int8 in OpenVINO; ``samples`` are those for calibration, which ``_spare_norms`` needs."""
    return _spare_norms(_spare_pads(_spare_kernels(_keep_biases(program))), samples)


def _keep_biases(program: Program) -> Program:
    """Give a product of rank 2 without a bias, or with a zero one, a tiny bias where another product reads it.

    In int8 OpenVINO makes one kernel of two such products. Where only a rectifier stands between them, the second reads
    the sums of the first before scaling: wrong values that differ between processes. Any bias prevents this.

    The bias is 1e-30: far below the resolution of any sum. It alternates with 0, because a uniform bias is optimised
    away.
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
    """Return whether a product reads the value, directly or through functions of one value."""
    return any(
        user.target in _FLAT or (len(user.all_input_nodes) == 1 and is_floating(user) and _feeds_product(user))
        for user in node.users
    )


def _spare_kernels(program: Program) -> Program:
    """Keep layers in float whose int8 kernels are wrong in every graph.

    1. A transposed convolution with holes (``_has_holes``).
    2. A padded convolution that makes several channels of each single one (``_multiplies``).
    3. An average that counts its padding (``_counts_padding``).
    """

    def rewrite(module: fx.GraphModule) -> int:
        cases = (_has_holes, _multiplies, _counts_padding)
        found = [node for node in module.graph.nodes if any(case(node) for case in cases)]
        for node in found:
            node.meta[FLOAT] = True
        return len(found)

    return edit(program, "spare_kernels", rewrite)


def _has_holes(node: fx.Node) -> bool:
    """Return whether a transposed convolution has a stride above its kernel, or a dilation.

    Some places of its output receive no product, only the bias. In int8 OpenVINO writes another value there: 1 dB.
    """
    if node.target not in TRANSPOSED:
        return False
    parts = bound(node)
    kernel = shape_of(parts["weight"])[2:]
    strides, dilation = spread(parts["stride"], len(kernel)), spread(parts["dilation"], len(kernel))
    return any(stride > size or step > 1 for stride, size, step in zip(strides, kernel, dilation, strict=True))


def _multiplies(node: fx.Node) -> bool:
    """Return whether a padded convolution makes several channels of each single one.

    In int8 OpenVINO pads with the level 0. With asymmetric activations that level does not stand for 0: 15 dB.
    """
    if node.target not in CONVOLUTIONS:
        return False
    parts = bound(node)
    padded = any(spread(parts["padding"], 1)) or parts["input"].target in PADS
    outputs, inputs = shape_of(parts["weight"])[:2]
    return padded and inputs == 1 < parts["groups"] < outputs


def _counts_padding(node: fx.Node) -> bool:
    """Return whether an average counts its padding; in int8 OpenVINO pads with the level 0, too: 10 to 20 dB."""
    if node.target not in AVERAGES:
        return False
    parts = bound(node)
    return bool(parts["count_include_pad"]) and any(spread(parts["padding"], 1))


def _spare_pads(program: Program) -> Program:
    """Keep a pad with a non-zero constant in float, with every operator since the last products.

    In int8 the constant is quantised by the range of the padded map. Where that range does not contain the constant,
    OpenVINO pads with another value: 13 dB.
    """

    def rewrite(module: fx.GraphModule) -> int:
        found = [node for node in module.graph.nodes if node.target in PADS and bound(node)["value"]]
        for part in {part for node in found for part in _since_product(node)}:
            part.meta[FLOAT] = True
        return len(found)

    return edit(program, "spare_pads", rewrite)


def _spare_norms(program: Program, samples: Samples) -> Program:
    """Keep norms in float whose epsilon matters on the calibration samples.

    In int8 OpenVINO normalises the levels, which are about 1/scale times the values. It adds the epsilon of the values
    to the variance of the levels, where it has no effect. A group of little variance becomes as large as any other: 0
    dB where a map is nearly constant.

    1. Leaving the epsilon out costs more than ``_CLEAR_DB``: float, with every operator since the last products.
    2. Else: int8.
    """

    def rewrite(module: fx.GraphModule) -> int:
        found = [node for node in module.graph.nodes if node.target in _GROUPS]
        sums = {node: [0.0, 0.0] for node in found}

        def record(name: str, value: Tensor) -> None:
            for node in found:
                if node.args[0].name == name:
                    variance = _GROUPS[node.target](value.double(), bound(node)).var(-1, correction=0)
                    kept = (variance / (variance + bound(node)["eps"])).sqrt()
                    sums[node][0] += float(kept.square().sum())
                    sums[node][1] += float((1 - kept[variance > 0]).square().sum())

        if found:
            observe(program, samples, record)
        affected = [node for node, (signal, lost) in sums.items() if lost > signal * 10 ** (-_CLEAR_DB / 10)]
        for node in affected:
            for part in _since_product(node):
                part.meta[FLOAT] = True
        return len(affected)

    return edit(program, "spare_norms", rewrite)


def _since_product(node: fx.Node) -> set[fx.Node]:
    """Return the node and everything it is computed from, back to the last products."""
    found: set[fx.Node] = set()
    left = [node]
    while left:
        part = left.pop()
        if part not in found and part.op == "call_function" and part.target not in PRODUCTS:
            found.add(part)
            left += part.all_input_nodes
    return found
