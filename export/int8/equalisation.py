"""Rescale channels between layers so that one int8 step fits all of them: ``equalise(program, samples)``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from hnas.export.graph.nodes import (
    CONVOLUTIONS,
    LINEAR,
    aten,
    bound,
    constant_value,
    edit,
    has_constant_weights,
    own_layer,
    rescale,
    set_weights,
    weights,
)
from hnas.export.graph.program import Program
from hnas.export.graph.samples import Samples
from hnas.export.int8.calibration import observe

_LAYERS = CONVOLUTIONS | LINEAR
# Operators with f(s x) = s f(x) for s > 0, channel by channel. ReLU6, hard-swish, SiLU and GELU are not: they have a
# fixed scale.
_HOMOGENEOUS = frozenset(
    {
        *(aten.relu.default, aten.leaky_relu.default),
        *(aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default),
    }
)
_MOST = 64.0  # largest factor; otherwise a channel of almost zero would reduce the precision of all others
_SWEEPS = 4  # over all pairs, because one layer may belong to two pairs (case 4)


def equalise(program: Program, samples: Samples) -> Program:
    """Rescale channels between layers so that large and small channels share an int8 grid (arXiv 1906.04721, 4.1).

    ``a`` is the largest activation of a channel on ``samples``, and ``w`` the largest weight that reads the channel.
    The channel is divided by s = sqrt(a / w) where it is computed, and multiplied by s where it is read. This is eq. 11
    with activations in place of the first layer's weights, which have a step per channel here. The program computes
    the same function.

    1. layer -> ReLU, leaky ReLU, pooling or nothing -> layers: rescaled. Layers are convolutions and linear layers.
    2. An activation with a fixed scale (ReLU6, hard-swish, GELU), a sum or a gate between them: unchanged.
    3. A computed weight, or a layer whose output another operator reads too: unchanged.
    4. A depthwise convolution is the second layer of one pair and the first of another: all pairs are visited 4 times.
    """

    def rewrite(module: fx.GraphModule) -> int:
        found = pairs(module)
        sizes = _sizes(program, samples, {_read(end).name for _, ends in found for end in ends})
        for _ in range(_SWEEPS):
            for first, ends in found:
                _equalise(module, first, ends, sizes)
        return len(found)

    return edit(program, "equalise", rewrite)


def pairs(module: fx.GraphModule) -> list[tuple[fx.Node, list[fx.Node]]]:
    """Return each layer of case 1 with the layers that read it."""
    found = []
    for node in module.graph.nodes:
        ends = _ends(node) if own_layer(node, _LAYERS) and _single(node) else None
        if ends:
            found.append((node, ends))
    return found


def _single(layer: fx.Node) -> bool:
    """Return True where no other layer shares the weight or the bias."""
    return all(part is None or len(part.users) == 1 for part in (bound(layer)["weight"], bound(layer)["bias"]))


def _ends(node: fx.Node) -> list[fx.Node] | None:
    """Return the layers that read the channels of ``node``; None where another operator reads them (cases 2 and 3)."""
    ends: list[fx.Node] = []
    for user in node.users:
        if user.target in _LAYERS and user.args[0] is node and has_constant_weights(user) and _single(user):
            ends.append(user)
        elif user.target in _HOMOGENEOUS and user.args[0] is node:
            further = _ends(user)
            if further is None:
                return None
            ends += further
        else:
            return None
    return ends


def _read(layer: fx.Node) -> fx.Node:
    """Return the value that a layer reads."""
    source = layer.args[0]
    assert isinstance(source, fx.Node)
    return source


def _sizes(program: Program, samples: Samples, names: set[str]) -> dict[str, Tensor]:
    """Return the largest magnitude of each channel of the named values over all samples, by name."""
    readers = [node for node in program.module.graph.nodes if node.target in _LAYERS]
    axes = {_read(node).name: _axis(program.module, node) for node in readers if _read(node).name in names}
    sizes: dict[str, Tensor] = {}

    def see(name: str, value: Tensor) -> None:
        if name in axes:
            largest = value.movedim(axes[name], 0).flatten(1).abs().amax(1).double()
            sizes[name] = torch.maximum(sizes[name], largest) if name in sizes else largest

    observe(program, samples, see)
    return sizes


def _axis(module: fx.GraphModule, layer: fx.Node) -> int:
    """Return the channel axis of a layer's input, counted from the end."""
    return -1 if layer.target in LINEAR else 1 - constant_value(module, bound(layer)["weight"]).ndim


def _equalise(module: fx.GraphModule, first: fx.Node, ends: Sequence[fx.Node], sizes: dict[str, Tensor]) -> None:
    """Rescale the channels between ``first`` and ``ends``, and update ``sizes``."""
    names = sorted({_read(end).name for end in ends})
    activation = torch.stack([sizes[name] for name in names]).amax(0)
    reading = torch.stack([_by_input(module, end) for end in ends]).amax(0)
    alive = (activation > 0) & (reading > 0)
    scale = torch.where(alive, (activation / reading.clamp(min=1e-30)).sqrt(), 1.0)
    middle = scale[alive].log().mean().exp() if bool(alive.any()) else scale.new_ones(())
    scale = torch.where(alive, (scale / middle).clamp(1 / _MOST, _MOST), 1.0)
    rescale(module, first, 1 / scale, torch.zeros_like(scale))
    for end in ends:
        _scale_inputs(module, end, scale)
    for name in names:
        sizes[name] = sizes[name] / scale


def _by_input(module: fx.GraphModule, layer: fx.Node) -> Tensor:
    """Return the largest weight that reads each input channel, [in]."""
    weight, _ = weights(module, layer)
    grouped = _grouped(layer, weight)
    return grouped.abs().flatten(3).amax(3).amax(1).flatten()


def _grouped(layer: fx.Node, weight: Tensor) -> Tensor:
    """Return a weight as [groups, out / groups, in / groups, everything else]."""
    groups = 1 if layer.target in LINEAR else int(bound(layer)["groups"])
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def _scale_inputs(module: fx.GraphModule, layer: fx.Node, scale: Tensor) -> None:
    """Replace ``layer(x)`` by ``layer(scale * x)``; scale is [in]."""
    weight, bias = weights(module, layer)
    grouped = _grouped(layer, weight)
    scaled = grouped * scale.reshape(grouped.shape[0], 1, -1, 1)
    set_weights(module, layer, scaled.reshape(weight.shape), bias.expand(weight.shape[0]))
