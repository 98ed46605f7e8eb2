"""Batch norms, layer scales and other arithmetic with one number a channel: into the weights of the layer beside it."""

from typing import Any

import torch
from torch import Tensor, fx

from hnas.export.graph.nodes import (
    CONVOLUTIONS,
    LINEAR,
    TRANSPOSED,
    aten,
    bound,
    constant_value,
    edit,
    is_floating,
    own_layer,
    set_weights,
    shape_of,
    substitute,
    weights,
)
from hnas.export.graph.program import Program

LAYERS = CONVOLUTIONS | TRANSPOSED | LINEAR
_SUMS = (aten.add.Tensor, aten.sub.Tensor)
_PRODUCTS = (aten.mul.Tensor, aten.div.Tensor)


def fold_batchnorm(program: Program) -> Program:
    """Absorb each batch norm into the layer before it, else into the one after it, computed in float64.

    1. conv -> bn, nothing else reads the conv: weights and bias are rescaled, bn goes. Any groups, any dimension.
    2. conv -> bn, something else reads the conv: left alone.
    3. bn -> conv without padding, or linear on [N, features], nothing else reads bn: the weights take it.
       With padding: left alone; the padded zeros are not normed.
    4. linear -> bn on [N, features]: as 1. On [N, length, features], where bn works on the length: left alone.
    5. transposed conv -> bn: as 1; its output channels lie in dimension 1, by groups. bn before it: left alone.
    6. bn on the moments of the batch, in eval mode too: left alone.
    7. The layer's weight is computed in the graph from the inputs: left alone.
    8. Layers that share a weight: each gets its own, rescaled by its own bn.
    """

    def rewrite(module: fx.GraphModule) -> int:
        norms = [node for node in module.graph.nodes if node.target is aten.batch_norm.default]
        return sum(_fold_norm(module, node) for node in norms)

    return edit(program, "fold_batchnorm", rewrite)


def _fold_norm(module: fx.GraphModule, norm: fx.Node) -> bool:
    layer, found = norm.args[0], moments(module, norm)
    assert isinstance(layer, fx.Node)
    if found is None:
        return False
    if own_layer(layer, LAYERS) and _has_batch(module, layer):
        rescale(module, layer, *found)
        substitute(norm, layer)
        return True
    after = next(iter(norm.users), norm)
    if len(norm.users) != 1 or not _takes_norm(module, after, norm):
        return False
    _rescale_inputs(module, after, *found)
    substitute(norm, layer)
    return True


def moments(module: fx.GraphModule, norm: fx.Node) -> tuple[Tensor, Tensor] | None:
    """(scale, shift) [C] of a batch norm in float64; None where they are not constant."""
    values = bound(norm)
    used = [values[name] for name in ("weight", "bias", "running_mean", "running_var")]
    if values["training"] or used[2] is None or any(part is not None and part.op != "get_attr" for part in used):
        return None
    gamma, beta, mean, variance = (None if part is None else constant_value(module, part).double() for part in used)
    assert mean is not None
    assert variance is not None
    scale = torch.rsqrt(variance + values["eps"]) * (1.0 if gamma is None else gamma)
    return scale, (0.0 if beta is None else beta) - mean * scale


def rescale(module: fx.GraphModule, layer: fx.Node, scale: Tensor, shift: Tensor) -> None:
    """Let ``layer`` compute ``scale * layer(x) + shift``; both are [C] or without dimensions."""
    weight, bias = weights(module, layer)
    axis = 1 if layer.target in TRANSPOSED else 0
    groups = bound(layer)["groups"] if axis else 1
    channels = weight.shape[axis] * groups
    grouped = weight.reshape(groups, -1, *weight.shape[1:]) if axis else weight
    factors = scale.expand(channels).reshape(*(groups, 1) if axis else (), -1, *[1] * (weight.ndim - 1 - axis))
    set_weights(module, layer, (grouped * factors).reshape(weight.shape), (bias * scale + shift).expand(channels))


def _has_batch(module: fx.GraphModule, layer: fx.Node) -> bool:
    """True where dimension 1 of the layer's output, which a norm works on, are its channels."""
    return len(shape_of(layer)) == constant_value(module, bound(layer)["weight"]).ndim


def _takes_norm(module: fx.GraphModule, layer: fx.Node, norm: fx.Node) -> bool:
    """True where ``layer`` has constant weights and reads ``norm`` as its input, never beyond its edge."""
    if layer.target not in CONVOLUTIONS | LINEAR or layer.args[0] is not norm:
        return False
    parts = bound(layer)
    if any(part is not None and part.op != "get_attr" for part in (parts["weight"], parts["bias"])):
        return False
    if not _has_batch(module, layer) or layer.target in LINEAR:
        return _has_batch(module, layer)
    return parts["padding"] == "valid" or (not isinstance(parts["padding"], str) and not any(parts["padding"]))


def _rescale_inputs(module: fx.GraphModule, layer: fx.Node, scale: Tensor, shift: Tensor) -> None:
    """Let ``layer`` compute ``layer(scale * x + shift)``; both are [C] of its input."""
    weight, bias = weights(module, layer)
    groups = 1 if layer.target in LINEAR else bound(layer)["groups"]
    grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    tail = [1] * (weight.ndim - 2)
    constants = (grouped * shift.reshape(groups, 1, -1, *tail)).flatten(2).sum(2).flatten()
    rescaled = (grouped * scale.reshape(groups, 1, -1, *tail)).reshape(weight.shape)
    set_weights(module, layer, rescaled, bias + constants)


def fold_scales(program: Program) -> Program:
    """Absorb constants that multiply or shift the output of a layer, computed in float64.

    1. conv, transposed conv or linear, then + - * / one number, or one constant for each output channel (ConvNeXt's
       layer scale): into weights and bias.
    2. (a + b) * number, each of them such a layer or sum, the spread of a junction: into every one of the layers.
    3. The layer is read elsewhere, the constant differs along another dimension: left alone.
    4. number - layer, number / layer: left alone.
    """

    def rewrite(module: fx.GraphModule) -> int:
        candidates = [node for node in module.graph.nodes if node.target in (*_SUMS, *_PRODUCTS) and is_floating(node)]
        return sum(_fold_scale(module, node) for node in candidates)

    return edit(program, "fold_scales", rewrite)


def _fold_scale(module: fx.GraphModule, node: fx.Node) -> bool:
    commutes = node.target in (aten.add.Tensor, aten.mul.Tensor)
    for source, other in [tuple(node.args[:2])] + ([(node.args[1], node.args[0])] if commutes else []):
        if not isinstance(source, fx.Node) or shape_of(source) != shape_of(node):
            continue
        layers = _layers(source)
        value = _by_channel(module, other, layers[0]) if layers else None
        alone = len(layers) == 1 or (node.target in _PRODUCTS and value is not None and value.ndim == 0)
        if value is None or not alone or source.meta["val"].dtype != node.meta["val"].dtype:
            continue
        one, zero = torch.ones_like(value), torch.zeros_like(value)
        if node.target in _SUMS:
            sign = 1 if node.target is aten.add.Tensor else -1
            scale, shift = one, value * sign * (bound(node)["alpha"] if source is node.args[0] else 1)
            if source is not node.args[0] and bound(node)["alpha"] != 1:
                continue  # number + alpha * layer is spelled by nobody
        else:
            scale, shift = (value if node.target is aten.mul.Tensor else one / value), zero
        if not bool(torch.isfinite(scale).all()):
            continue
        for layer in layers:
            rescale(module, layer, scale, shift)
        substitute(node, source)
        return True
    return False


def _layers(node: Any) -> list[fx.Node]:
    """The layers that ``node`` is the sum of, ``node`` itself where it is one; none where anything else is in it."""
    if own_layer(node, LAYERS):
        return [node]
    if not isinstance(node, fx.Node) or node.target is not aten.add.Tensor or len(node.users) != 1:
        return []
    parts = [_layers(part) for part in node.args[:2] if isinstance(part, fx.Node)]
    plain = bound(node)["alpha"] == 1 and len(parts) == 2 and all(parts) and node.args[0] is not node.args[1]
    return parts[0] + parts[1] if plain else []


def _by_channel(module: fx.GraphModule, value: Any, layer: fx.Node) -> Tensor | None:
    """A number or constant in float64 as [] or [C] of the layer's output; None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return torch.tensor(float(value), dtype=torch.float64)
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return None
    tensor, shape = constant_value(module, value), shape_of(layer)
    if not tensor.is_floating_point() or tensor.ndim > len(shape):
        return None
    if tensor.numel() == 1:
        return tensor.double().reshape(())
    spatial = 0 if layer.target in LINEAR else constant_value(module, bound(layer)["weight"]).ndim - 2
    axis = len(shape) - 1 - spatial
    sizes = [1] * (len(shape) - tensor.ndim) + list(tensor.shape)
    fits = sizes[axis] == shape[axis] and all(size == 1 for place, size in enumerate(sizes) if place != axis)
    return tensor.double().flatten() if fits else None
