"""Simplify squeeze-excite gates for a runtime: ``clip_hardsigmoids`` and ``pooled_linears``."""

import torch
from torch import fx

from hnas.export.graph.nodes import (
    LAYERS,
    aten,
    bound,
    call,
    constant,
    constant_value,
    edit,
    has_constant_weights,
    own_layer,
    prune,
    rescale,
    shape_of,
    substitute,
)
from hnas.export.graph.passes.activation_order import ACTIVATIONS
from hnas.export.graph.passes.reshapes import RESHAPES
from hnas.export.graph.program import Program

_POOLED = frozenset({aten.adaptive_avg_pool2d.default, aten.mean.dim})


def clip_hardsigmoids(program: Program) -> Program:
    """Replace a hard sigmoid behind a layer by a clamp to [0, 1]; the layer's weights absorb its slope and offset.

    1. layer -> hardsigmoid, nothing else reads the layer: weights / 6, bias / 6 + 1 / 2, then clamp.
    2. The layer is read elsewhere too, or there is no layer: unchanged.
    """

    def rewrite(module: fx.GraphModule) -> int:
        gates = [node for node in module.graph.nodes if node.target is aten.hardsigmoid.default]
        found = [node for node in gates if own_layer(node.args[0], LAYERS)]  # case 1; others are case 2
        for node in found:
            slope, offset = (torch.tensor(value, dtype=torch.float64) for value in (1 / 6, 1 / 2))
            rescale(module, node.args[0], slope, offset)
            substitute(node, call(node, aten.clamp.default, (node.args[0], 0.0, 1.0)))
        return len(found)

    return edit(program, "clip_hardsigmoids", rewrite)


def pooled_linears(program: Program) -> Program:
    """Compute the convolutions of a squeeze-excite block as matrix-vector products.

    1. 1x1 convolution without groups or padding on a map of one pixel: linear on [N, C], then a reshape.
    2. Activations between two such convolutions: computed on [N, C] too. A mean or average pool before them returns
       [N, C].
    3. A map of more pixels, another kernel size, computed weights: unchanged.
    4. One input and one output channel: unchanged. OpenVINO 2026.4 cannot open two such products in a row.
    """

    def rewrite(module: fx.GraphModule) -> int:
        found = [node for node in module.graph.nodes if _is_pooled(module, node)]
        for node in found:
            _flatten(module, node)
        return len(found)

    return edit(program, "pooled_linears", rewrite)


def _is_pooled(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.target is not aten.conv2d.default or not has_constant_weights(node):  # case 3
        return False
    source, parts = node.args[0], bound(node)
    assert isinstance(source, fx.Node)
    shape, kernel = shape_of(source), constant_value(module, parts["weight"]).shape
    single = len(shape) == 4 and shape[2:] == (1, 1) == kernel[2:] and kernel[:2] != (1, 1)  # cases 3 and 4
    return single and parts["groups"] == 1 and not any(parts["padding"])


def _flatten(module: fx.GraphModule, node: fx.Node) -> None:
    parts, (source, *_) = bound(node), node.args
    assert isinstance(source, fx.Node)
    weight = constant_value(module, parts["weight"])
    stem = str(parts["weight"].target).replace(".", "_")
    matrix = constant(module, node, f"{stem}_matrix", weight.reshape(weight.shape[:2]))
    shape = shape_of(node)
    # case 1
    vector = call(node, aten.linear.default, (_vector(node, source), matrix, parts["bias"]), shape[:2])
    substitute(node, call(node, aten.reshape.default, (vector, list(shape))))
    prune(source)


def _vector(before: fx.Node, node: fx.Node) -> fx.Node:
    """Insert ``node``, a map of one pixel, as [N, C]: computed in that shape if possible, else reshaped."""
    shape, source = shape_of(node)[:2], node.args[0] if node.args else None
    if isinstance(source, fx.Node) and len(node.users) == 1:
        if node.target in RESHAPES and shape_of(source) == shape:
            return source
        if node.target in ACTIVATIONS and shape_of(source) == shape_of(node):  # case 2
            made = call(before, node.target, (_vector(before, source), *node.args[1:]), shape)
            made.kwargs = dict(node.kwargs)
            return made
        if node.target in _POOLED and _is_global(node):  # case 2
            return call(before, aten.mean.dim, (source, [2, 3]), shape)
    return call(before, aten.reshape.default, (node, list(shape)), shape)


def _is_global(node: fx.Node) -> bool:
    """Return True for a pool over all pixels; the output is known to have one pixel."""
    parts = bound(node)
    if node.target is not aten.mean.dim:
        return True
    return sorted(dim % 4 for dim in parts["dim"]) == [2, 3] and parts["dtype"] is None
