"""Work around OpenVINO 2026.4 bugs in int8: keep operators in float, or rewrite them. Always applied.

Call ``apply_int8_fixes(program, samples)``. Fuzzing found each bug. `tests/export/backends/test_regressions_int8.py`
has the smallest program that shows each bug. Figures in dB are the SQNR of the output without the workaround.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx

from hnas.export.backends.openvino.biases import FLAT, give_bias, has_no_bias
from hnas.export.backends.openvino.fixes import AVERAGES, PADS, PRODUCTS, spread
from hnas.export.graph.marks import FLOAT
from hnas.export.graph.nodes import (
    CONVOLUTIONS,
    TRANSPOSED,
    aten,
    bound,
    edit,
    is_floating,
    shape_of,
)
from hnas.export.graph.program import Program
from hnas.export.graph.samples import Samples
from hnas.export.int8.calibration import observe

_TRANSFORMS = frozenset(
    {
        *(aten.fft_fft.default, aten.fft_fft2.default, aten.fft_fftn.default),
        *(aten.fft_ifft.default, aten.fft_ifft2.default, aten.fft_ifftn.default),
    }
)
# Values that are normalised together: [groups, values].
_GROUPS: dict[Any, Callable[[Tensor, dict[str, Any]], Tensor]] = {
    aten.layer_norm.default: lambda x, parts: x.flatten(-len(parts["normalized_shape"])),
    aten.group_norm.default: lambda x, parts: x.reshape(len(x) * parts["num_groups"], -1),
    aten.instance_norm.default: lambda x, _: x.flatten(2),
}
_CLEAR_DB = 40.0  # about the SQNR of an activation in int8


def apply_int8_fixes(program: Program, samples: Samples) -> Program:
    """Prepare a program for int8 in OpenVINO. ``samples``: the calibration samples, which ``_spare_norms`` needs."""
    return _spare_norms(_spare_pads(_spare_kernels(_keep_biases(program))), samples)


def _keep_biases(program: Program) -> Program:
    """Give a product without a bias, or with a zero one, a tiny bias in two cases.

    1. It has rank 2 and another product reads it. In int8, OpenVINO fuses two such products into one kernel. If only a
       rectifier is between them, the second product reads the unscaled sums of the first: the values are wrong and
       differ between processes. Any bias prevents this.
    2. A Fourier transform of complex numbers reads it. OpenVINO moves the scales of the channels behind the axis of
       real and imaginary parts, where they do not fit: the file cannot be opened.
    """

    def rewrite(module: fx.GraphModule) -> int:
        products = [node for node in module.graph.nodes if has_no_bias(module, node)]
        found = [
            node
            for node in products
            if (len(shape_of(node)) == 2 and _feeds(node, FLAT)) or _feeds(node, _TRANSFORMS)  # cases 1 and 2
        ]
        for node in found:
            give_bias(module, node)
        return len(found)

    return edit(program, "keep_biases", rewrite)


def _feeds(node: fx.Node, targets: frozenset[Any]) -> bool:
    """Return whether one of ``targets`` reads the value, directly or through operators with one input."""
    return any(
        user.target in targets or (len(user.all_input_nodes) == 1 and is_floating(user) and _feeds(user, targets))
        for user in node.users
    )


def _spare_kernels(program: Program) -> Program:
    """Keep layers in float whose int8 kernels are wrong in every graph.

    1. A transposed convolution with holes (``_has_holes``).
    2. A padded depthwise convolution with several output channels for each input channel (``_multiplies``).
    3. An average pool that counts its padding (``_counts_padding``).
    """

    def rewrite(module: fx.GraphModule) -> int:
        cases = (_has_holes, _multiplies, _counts_padding)  # cases 1, 2 and 3
        found = [node for node in module.graph.nodes if any(case(node) for case in cases)]
        for node in found:
            node.meta[FLOAT] = True
        return len(found)

    return edit(program, "spare_kernels", rewrite)


def _has_holes(node: fx.Node) -> bool:
    """Return whether a transposed convolution has a stride above its kernel, or a dilation.

    Some positions of its output receive only the bias. In int8, OpenVINO writes another value there: 1 dB.
    """
    if node.target not in TRANSPOSED:
        return False
    parts = bound(node)
    kernel = shape_of(parts["weight"])[2:]
    strides, dilation = spread(parts["stride"], len(kernel)), spread(parts["dilation"], len(kernel))
    return any(stride > size or step > 1 for stride, size, step in zip(strides, kernel, dilation, strict=True))


def _multiplies(node: fx.Node) -> bool:
    """Return whether a padded depthwise convolution has several output channels for each input channel.

    In int8, OpenVINO pads with the level 0. With asymmetric activations, that level does not mean the value 0: 15 dB.
    """
    if node.target not in CONVOLUTIONS:
        return False
    parts = bound(node)
    padded = any(spread(parts["padding"], 1)) or parts["input"].target in PADS
    outputs, inputs = shape_of(parts["weight"])[:2]
    return padded and inputs == 1 < parts["groups"] < outputs


def _counts_padding(node: fx.Node) -> bool:
    """Return whether an average pool counts its padding. In int8, OpenVINO also pads it with level 0: 10 to 20 dB."""
    if node.target not in AVERAGES:
        return False
    parts = bound(node)
    return bool(parts["count_include_pad"]) and any(spread(parts["padding"], 1))


def _spare_pads(program: Program) -> Program:
    """Keep a pad with a non-zero constant in float, and every operator between it and the products before it.

    In int8, the constant is quantised with the range of the padded map. If that range does not contain the constant,
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

    In int8, OpenVINO normalises the levels, which are about 1/scale times the values. It adds the epsilon of the values
    to the variance of the levels, where the epsilon has no effect. A group with little variance becomes as large as any
    other: 0 dB if a map is nearly constant.

    1. Without the epsilon, the SQNR of the norm is below ``_CLEAR_DB``: float, and every operator between the norm and
       the products before it.
    2. Otherwise: int8.
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
    """Return the node and everything it is computed from, up to the products before it."""
    found: set[fx.Node] = set()
    left = [node]
    while left:
        part = left.pop()
        if part not in found and part.op == "call_function" and part.target not in PRODUCTS:
            found.add(part)
            left += part.all_input_nodes
    return found
