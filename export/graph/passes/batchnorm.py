"""Fold batch norms into the layers next to them: ``fold_batchnorm(program)``."""

import torch
from torch import Tensor, fx

from hnas.export.graph.nodes import (
    CONVOLUTIONS,
    LAYERS,
    LINEAR,
    aten,
    bound,
    constant_value,
    edit,
    has_constant_weights,
    own_layer,
    rescale,
    set_weights,
    shape_of,
    substitute,
    weights,
)
from hnas.export.graph.program import Program


def fold_batchnorm(program: Program) -> Program:
    """Absorb each batch norm into the layer before it, or else into the layer after it, computed in float64.

    1. conv -> bn, nothing else reads the conv: its weights and bias are rescaled, bn is removed. Any groups, any rank.
    2. conv -> bn, and another operator reads the conv too: unchanged.
    3. bn -> conv without padding, or linear on [N, features], nothing else reads bn: folded into the layer's weights.
       With padding: unchanged, because the padded zeros are not normalised.
    4. linear -> bn on [N, features]: as case 1. On [N, length, features], where bn normalises over length: unchanged.
    5. Transposed conv -> bn: as case 1; its output channels are dimension 1, by groups. bn before it: unchanged.
    6. bn that uses the moments of the batch in eval mode too: unchanged.
    7. A layer whose weight is computed from the inputs: unchanged.
    8. Layers that share a weight: each gets a weight of its own, rescaled by its own bn.
    """

    def rewrite(module: fx.GraphModule) -> int:
        norms = [node for node in module.graph.nodes if node.target is aten.batch_norm.default]
        return sum(_fold_norm(module, node) for node in norms)

    return edit(program, "fold_batchnorm", rewrite)


def _fold_norm(module: fx.GraphModule, norm: fx.Node) -> bool:
    layer, found = norm.args[0], moments(module, norm)
    assert isinstance(layer, fx.Node)
    if found is None:  # case 6
        return False
    if own_layer(layer, LAYERS) and _has_batch(module, layer):  # cases 1, 4, 5 and 8; own_layer excludes cases 2 and 7
        rescale(module, layer, *found)
        substitute(norm, layer)
        return True
    after = next(iter(norm.users), norm)
    if len(norm.users) != 1 or not _takes_norm(module, after, norm):
        return False
    _rescale_inputs(module, after, *found)  # case 3
    substitute(norm, layer)
    return True


def moments(module: fx.GraphModule, norm: fx.Node) -> tuple[Tensor, Tensor] | None:
    """Return (scale, shift), each [C] in float64, of a batch norm; None where the two are not constant."""
    values = bound(norm)
    used = [values[name] for name in ("weight", "bias", "running_mean", "running_var")]
    if values["training"] or used[2] is None or any(part is not None and part.op != "get_attr" for part in used):
        return None
    gamma, beta, mean, variance = (None if part is None else constant_value(module, part).double() for part in used)
    assert mean is not None
    assert variance is not None
    scale = torch.rsqrt(variance + values["eps"]) * (1.0 if gamma is None else gamma)
    return scale, (0.0 if beta is None else beta) - mean * scale


def _has_batch(module: fx.GraphModule, layer: fx.Node) -> bool:
    """Return True where dimension 1 of the layer's output, which a batch norm normalises, holds the channels."""
    return len(shape_of(layer)) == constant_value(module, bound(layer)["weight"]).ndim


def _takes_norm(module: fx.GraphModule, layer: fx.Node, norm: fx.Node) -> bool:
    """Return True where ``layer`` has constant weights and reads ``norm`` as its input, without padding (case 3)."""
    if layer.target not in CONVOLUTIONS | LINEAR or layer.args[0] is not norm or not has_constant_weights(layer):
        return False
    if not _has_batch(module, layer) or layer.target in LINEAR:
        return _has_batch(module, layer)
    padding = bound(layer)["padding"]
    return padding == "valid" or (not isinstance(padding, str) and not any(padding))


def _rescale_inputs(module: fx.GraphModule, layer: fx.Node, scale: Tensor, shift: Tensor) -> None:
    """Replace ``layer(x)`` by ``layer(scale * x + shift)``; scale and shift are [C] of the input."""
    weight, bias = weights(module, layer)
    groups = 1 if layer.target in LINEAR else bound(layer)["groups"]
    grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    tail = [1] * (weight.ndim - 2)
    constants = (grouped * shift.reshape(groups, 1, -1, *tail)).flatten(2).sum(2).flatten()
    rescaled = (grouped * scale.reshape(groups, 1, -1, *tail)).reshape(weight.shape)
    set_weights(module, layer, rescaled, bias + constants)
