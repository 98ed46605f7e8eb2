"""Activations where a kernel can end with them, and the gates of squeeze-excite in the cheapest form of a runtime."""

from itertools import chain
from typing import Any

import torch
from torch import fx

from hnas.export.graph.nodes import (
    aten,
    bound,
    call,
    constant,
    constant_value,
    edit,
    own_layer,
    prune,
    shape_of,
    substitute,
)
from hnas.export.graph.passes.layout import PERMUTATIONS, RESHAPES
from hnas.export.graph.passes.scales import LAYERS, rescale
from hnas.export.graph.program import Program

_RISING = frozenset({aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default})
_ACTIVATIONS = _RISING | {
    aten.hardsigmoid.default,
    aten.hardswish.default,
    aten.sigmoid.default,
    aten.tanh.default,
    aten.silu.default,
    aten.gelu.default,
    aten.leaky_relu.default,
    aten.elu.default,
}
_POOLED = frozenset({aten.adaptive_avg_pool2d.default, aten.mean.dim})


def raise_activations(program: Program) -> Program:
    """Put an activation right behind the layer it belongs to, where every runtime computes both in one kernel.

    1. layer -> reshape or permute -> activation: layer -> activation -> reshape or permute.
    2. layer -> max pool -> relu, relu6 or clamp, which keep the order of numbers: before the pool.
    3. layers -> concatenation -> activation: one for each of the layers.
    4. Something else reads the layer or what is between: left alone. No layer there: left alone.
    """

    def rewrite(module: fx.GraphModule) -> int:
        found = [node for node in module.graph.nodes if node.target in _ACTIVATIONS]
        return sum(_raise(node) for node in found)

    return edit(program, "raise_activations", rewrite)


def _raise(node: fx.Node) -> bool:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    layers = _layers_behind(source, node.target in _RISING)
    if not layers or source in layers:
        return False
    for layer in layers:
        (user,) = layer.users
        activation = call(user, node.target, (layer, *node.args[1:]), shape_of(layer))
        activation.kwargs = dict(node.kwargs)
        layer.replace_all_uses_with(activation, lambda reader, own=activation: reader is not own)  # type: ignore[misc]
    substitute(node, source)
    return True


def _layers_behind(node: fx.Node, rising: bool) -> list[fx.Node]:
    """The layers whose outputs are ``node`` but for their order and, where ``rising``, for a maximum; else none."""
    if own_layer(node, LAYERS):
        return [node]
    if len(node.users) != 1:
        return []
    if node.target is aten.cat.default:
        parts = node.args[0]
        assert isinstance(parts, list | tuple)
        found = [_layers_behind(part, rising) for part in parts if isinstance(part, fx.Node)]
        return list(chain(*found)) if all(found) and len(set(parts)) == len(parts) else []
    if node.target in RESHAPES | PERMUTATIONS or (rising and node.target is aten.max_pool2d.default):
        source = node.args[0]
        assert isinstance(source, fx.Node)
        return _layers_behind(source, rising)
    return []


def clip_hardsigmoids(program: Program) -> Program:
    """Turn a hard sigmoid behind a layer into a clamp to 0 and 1; the layer's weights take its slope and its offset.

    1. layer -> hardsigmoid, nothing else reads the layer: layer of a sixth of its weights, bias / 6 + 1 / 2, -> clamp.
    2. The layer is read elsewhere, or no layer is there: left alone.
    """

    def rewrite(module: fx.GraphModule) -> int:
        gates = [node for node in module.graph.nodes if node.target is aten.hardsigmoid.default]
        found = [node for node in gates if own_layer(node.args[0], LAYERS)]
        for node in found:
            slope, offset = (torch.tensor(value, dtype=torch.float64) for value in (1 / 6, 1 / 2))
            rescale(module, node.args[0], slope, offset)
            substitute(node, call(node, aten.clamp.default, (node.args[0], 0.0, 1.0)))
        return len(found)

    return edit(program, "clip_hardsigmoids", rewrite)


def pooled_linears(program: Program) -> Program:
    """Compute the convolutions of a squeeze-excite block as what they are, products of a matrix with one vector.

    1. 1x1 convolution without groups, stride or padding on a map of one pixel: linear on [N, C], reshaped afterwards.
    2. Activations between two of them work on [N, C] too, and a mean or average pool before them gives it.
    3. A map of more pixels, other kernels, computed weights: left alone.
    4. One channel from one channel: left alone. OpenVINO 2026.4 cannot open two such products in a row.
    """

    def rewrite(module: fx.GraphModule) -> int:
        found = [node for node in module.graph.nodes if _is_pooled(module, node)]
        for node in found:
            _flatten(module, node)
        return len(found)

    return edit(program, "pooled_linears", rewrite)


def _is_pooled(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.target is not aten.conv2d.default or any(part.op != "get_attr" for part in _parameters(node)):
        return False
    source, parts = node.args[0], bound(node)
    assert isinstance(source, fx.Node)
    shape, kernel = shape_of(source), constant_value(module, parts["weight"]).shape
    single = len(shape) == 4 and shape[2:] == (1, 1) == kernel[2:] and kernel[:2] != (1, 1)
    return single and parts["groups"] == 1 and not any(parts["padding"])


def _parameters(node: fx.Node) -> list[Any]:
    parts = bound(node)
    return [part for part in (parts["weight"], parts["bias"]) if part is not None]


def _flatten(module: fx.GraphModule, node: fx.Node) -> None:
    parts, (source, *_) = bound(node), node.args
    assert isinstance(source, fx.Node)
    weight = constant_value(module, parts["weight"])
    stem = str(parts["weight"].target).replace(".", "_")
    matrix = constant(module, node, f"{stem}_matrix", weight.reshape(weight.shape[:2]))
    shape = shape_of(node)
    vector = call(node, aten.linear.default, (_vector(node, source), matrix, parts["bias"]), shape[:2])
    substitute(node, call(node, aten.reshape.default, (vector, list(shape))))
    prune(source)


def _vector(before: fx.Node, node: fx.Node) -> fx.Node:
    """``node``, a map of one pixel, as [N, C]: computed so where only ``before`` will read it, else reshaped."""
    shape, source = shape_of(node)[:2], node.args[0] if node.args else None
    if isinstance(source, fx.Node) and len(node.users) == 1:
        if node.target in RESHAPES and shape_of(source) == shape:
            return source
        if node.target in _ACTIVATIONS and shape_of(source) == shape_of(node):
            made = call(before, node.target, (_vector(before, source), *node.args[1:]), shape)
            made.kwargs = dict(node.kwargs)
            return made
        if node.target in _POOLED and _is_global(node):
            return call(before, aten.mean.dim, (source, [2, 3]), shape)
    return call(before, aten.reshape.default, (node, list(shape)), shape)


def _is_global(node: fx.Node) -> bool:
    parts = bound(node)
    if node.target is not aten.mean.dim:
        return True  # its output is known to be one pixel
    return sorted(dim % 4 for dim in parts["dim"]) == [2, 3] and parts["dtype"] is None
