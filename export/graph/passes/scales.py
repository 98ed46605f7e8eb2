"""Fold layer scales and other arithmetic with constants into the layer before it: ``fold_scales(program)``."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from hnas.export.graph.nodes import (
    LAYERS,
    LINEAR,
    aten,
    bound,
    constant_value,
    edit,
    is_floating,
    own_layer,
    rescale,
    shape_of,
    substitute,
)
from hnas.export.graph.program import Program

_SUMS = (aten.add.Tensor, aten.sub.Tensor)
_PRODUCTS = (aten.mul.Tensor, aten.div.Tensor)


def fold_scales(program: Program) -> Program:
    """Absorb constants that multiply or shift the output of a layer, computed in float64.

    1. conv, transposed conv or linear, then + - * / one number, or one constant per output channel (ConvNeXt's layer
       scale): folded into weights and bias.
    2. (a + b) * number, where a and b are such layers or sums of them: folded into each of the layers.
    3. The layer is read elsewhere too, or the constant varies along another dimension: unchanged.
    4. number - layer, number / layer: unchanged.
    """

    def rewrite(module: fx.GraphModule) -> int:
        candidates = [node for node in module.graph.nodes if node.target in (*_SUMS, *_PRODUCTS) and is_floating(node)]
        return sum(_fold_scale(module, node) for node in candidates)

    return edit(program, "fold_scales", rewrite)


def _fold_scale(module: fx.GraphModule, node: fx.Node) -> bool:
    commutes = node.target in (aten.add.Tensor, aten.mul.Tensor)
    # cases 1 and 2; in case 4 the operands cannot be exchanged
    for source, other in [tuple(node.args[:2])] + ([(node.args[1], node.args[0])] if commutes else []):
        layers = _scaled_layers(source, node)
        factors = _scale_and_shift(module, node, other, layers) if layers else None
        if factors is None:
            continue
        for layer in layers:
            rescale(module, layer, *factors)
        assert isinstance(source, fx.Node)
        substitute(node, source)
        return True
    return False


def _scaled_layers(source: Any, node: fx.Node) -> list[fx.Node]:
    """Return the layers whose sum is ``source``; none if ``node`` changes the shape or type of ``source``."""
    if not isinstance(source, fx.Node) or shape_of(source) != shape_of(node):
        return []
    layers = _layers(source)
    return layers if layers and source.meta["val"].dtype == node.meta["val"].dtype else []


def _layers(node: Any) -> list[fx.Node]:
    """Return ``node`` if it is a layer, or the layers whose sum it is; none if the sum has any other term."""
    if own_layer(node, LAYERS):
        return [node]
    if not isinstance(node, fx.Node) or node.target is not aten.add.Tensor or len(node.users) != 1:
        return []
    parts = [_layers(part) for part in node.args[:2] if isinstance(part, fx.Node)]
    plain = bound(node)["alpha"] == 1 and len(parts) == 2 and all(parts) and node.args[0] is not node.args[1]
    return parts[0] + parts[1] if plain else []


def _scale_and_shift(
    module: fx.GraphModule, node: fx.Node, other: Any, layers: Sequence[fx.Node]
) -> tuple[Tensor, Tensor] | None:
    """Return (scale, shift) that ``node`` applies to each of ``layers`` with its operand ``other``; else None."""
    value = _by_channel(module, other, layers[0])
    if value is None:  # case 3
        return None
    if len(layers) > 1 and (node.target in _SUMS or value.ndim):  # case 2 needs a product with one number
        return None
    if node.target in _SUMS:
        alpha = bound(node)["alpha"]  # torch multiplies the second operand by it
        if other is node.args[0] and alpha != 1:
            return None  # number + alpha * layer does not occur in practice
        sign = 1 if node.target is aten.add.Tensor else -1
        return torch.ones_like(value), value * sign * alpha
    scale = value if node.target is aten.mul.Tensor else 1 / value
    return (scale, torch.zeros_like(value)) if bool(torch.isfinite(scale).all()) else None


def _by_channel(module: fx.GraphModule, value: Any, layer: fx.Node) -> Tensor | None:
    """Return a number or constant in float64 as [] or [C] of the layer's output; None for any other value."""
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
