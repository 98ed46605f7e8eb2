"""Channels of one layer's output brought to one size, so that a single int8 step fits all of them."""

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
    own_layer,
    rescale,
    set_weights,
    weights,
)
from hnas.export.graph.program import Program
from hnas.export.graph.samples import Arrays
from hnas.export.int8.calibration import observe

LAYERS = CONVOLUTIONS | LINEAR
# f(s x) = s f(x) for s > 0, channel by channel. Not ReLU6, hard-swish, SiLU, GELU: these know a scale.
_HOMOGENEOUS = frozenset(
    {
        *(aten.relu.default, aten.leaky_relu.default),
        *(aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default),
    }
)
MOST = 64.0  # by which a channel is rescaled; a channel that is all but dead would take the others' precision
SWEEPS = 4  # over all pairs: a depthwise layer is the second of one pair and the first of the next


def equalise(program: Program, data: Sequence[Arrays]) -> Program:
    """Rescale channels between layers so that large ones and small ones share an int8 grid (arXiv 1906.04721, 4.1).

    With ``a`` the largest activation of a channel on ``data`` and ``w`` the largest weight that reads it, the channel
    is divided by s = sqrt(a / w) (eq. 11 with activations in the place of the first layer's weights, which are
    quantised by the channel here) and multiplied by s where it is read. The function stays the same.

    1. layer -> ReLU, leaky ReLU, pooling or nothing -> layers: rescaled. Layers are convolutions and linear layers.
    2. An activation that knows a scale between them (ReLU6, hard-swish, GELU), a sum, a gate: left alone.
    3. A weight that is computed, or a layer whose output something else reads too: left alone.
    4. A depthwise convolution is the second layer of one pair and the first of another: pairs are swept four times.
    """

    def rewrite(module: fx.GraphModule) -> int:
        found = pairs(module)
        sizes = _sizes(program, data, {_read(end).name for _, ends in found for end in ends})
        for _ in range(SWEEPS):
            for first, ends in found:
                _equalise(module, first, ends, sizes)
        return len(found)

    return edit(program, "equalise", rewrite)


def pairs(module: fx.GraphModule) -> list[tuple[fx.Node, list[fx.Node]]]:
    """Every layer whose output only layers read, through nothing or what commutes with a scale; and these layers."""
    found = []
    for node in module.graph.nodes:
        ends = _ends(node) if own_layer(node, LAYERS) and _single(node) else None
        if ends:
            found.append((node, ends))
    return found


def _single(layer: fx.Node) -> bool:
    """Nothing else reads the layer's weight: what is rescaled in place must be its own."""
    return all(part is None or len(part.users) == 1 for part in (bound(layer)["weight"], bound(layer)["bias"]))


def _ends(node: fx.Node) -> list[fx.Node] | None:
    """The layers that read the channels of ``node``; None where anything else does."""
    ends: list[fx.Node] = []
    for user in node.users:
        if user.target in LAYERS and user.args[0] is node and _constant(user) and _single(user):
            ends.append(user)
        elif user.target in _HOMOGENEOUS and user.args[0] is node:
            further = _ends(user)
            if further is None:
                return None
            ends += further
        else:
            return None
    return ends


def _constant(layer: fx.Node) -> bool:
    parts = (bound(layer)["weight"], bound(layer)["bias"])
    return all(part is None or part.op == "get_attr" for part in parts)


def _read(layer: fx.Node) -> fx.Node:
    """The value that a layer reads."""
    source = layer.args[0]
    assert isinstance(source, fx.Node)
    return source


def _sizes(program: Program, data: Sequence[Arrays], names: set[str]) -> dict[str, Tensor]:
    """The largest magnitude of every channel of the named values over all samples; their axis is told by the reader."""
    readers = [node for node in program.module.graph.nodes if node.target in LAYERS]
    axes = {_read(node).name: _axis(program.module, node) for node in readers if _read(node).name in names}
    sizes: dict[str, Tensor] = {}

    def see(name: str, value: Tensor) -> None:
        if name in axes:
            largest = value.movedim(axes[name], 0).flatten(1).abs().amax(1).double()
            sizes[name] = torch.maximum(sizes[name], largest) if name in sizes else largest

    observe(program, data, see)
    return sizes


def _axis(module: fx.GraphModule, layer: fx.Node) -> int:
    """Where the channels of a layer's input lie, from the end."""
    return -1 if layer.target in LINEAR else 1 - constant_value(module, bound(layer)["weight"]).ndim


def _equalise(module: fx.GraphModule, first: fx.Node, ends: Sequence[fx.Node], sizes: dict[str, Tensor]) -> None:
    names = sorted({_read(end).name for end in ends})
    activation = torch.stack([sizes[name] for name in names]).amax(0)
    reading = torch.stack([_by_input(module, end) for end in ends]).amax(0)
    alive = (activation > 0) & (reading > 0)
    scale = torch.where(alive, (activation / reading.clamp(min=1e-30)).sqrt(), 1.0)
    middle = scale[alive].log().mean().exp() if bool(alive.any()) else scale.new_ones(())
    scale = torch.where(alive, (scale / middle).clamp(1 / MOST, MOST), 1.0)
    rescale(module, first, 1 / scale, torch.zeros_like(scale))
    for end in ends:
        _scale_inputs(module, end, scale)
    for name in names:
        sizes[name] = sizes[name] / scale


def _by_input(module: fx.GraphModule, layer: fx.Node) -> Tensor:
    """The largest weight that reads each input channel, [in]."""
    weight, _ = weights(module, layer)
    grouped = _grouped(layer, weight)
    return grouped.abs().flatten(3).amax(3).amax(1).flatten()


def _grouped(layer: fx.Node, weight: Tensor) -> Tensor:
    """A weight as [groups, out / groups, in / groups, everything else]."""
    groups = 1 if layer.target in LINEAR else int(bound(layer)["groups"])
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def _scale_inputs(module: fx.GraphModule, layer: fx.Node, scale: Tensor) -> None:
    """Let ``layer`` compute what it computes now of ``scale * x``; scale [in]."""
    weight, bias = weights(module, layer)
    grouped = _grouped(layer, weight)
    scaled = grouped * scale.reshape(grouped.shape[0], 1, -1, 1)
    set_weights(module, layer, scaled.reshape(weight.shape), bias.expand(weight.shape[0]))
