"""int8 in float: what a quantised artifact will compute, near enough to fit weights to it and to rank blocks by it.

Weights are s8 per output channel with the largest magnitude at 127, which is how every quantiser of the backends puts
them; activations are u8 per tensor where a layer with weights or an addition reads them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from hnas.export.graph.marks import FLOAT
from hnas.export.graph.nodes import CONVOLUTIONS, LINEAR, aten, bound, constant_value, edit, is_floating
from hnas.export.graph.program import Program
from hnas.export.graph.samples import Arrays
from hnas.export.int8.calibration import Range

LARGEST = 127  # of a weight in int8; -128 is left out, as symmetric quantisers do
LEVELS = 256  # of an activation


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution or linear layer of a graph whose weight and bias are constants that nothing else reads.

    weight: [out, in / groups, ...]; bias: [out] or None.
    """

    node: fx.Node
    source: fx.Node
    weight: Tensor
    bias: Tensor | None

    @property
    def is_convolution(self) -> bool:
        """True for a convolution, False for a linear layer: where the channels of the output lie."""
        return self.node.target in CONVOLUTIONS

    @property
    def groups(self) -> int:
        """Into how many groups the channels are split; 1 for a linear layer."""
        return int(bound(self.node)["groups"]) if self.is_convolution else 1


def layers(module: fx.GraphModule) -> list[Layer]:
    """The layers of a graph in its order. One whose weight is computed, or shared with another, is none."""
    return [layer for node in module.graph.nodes if (layer := _layer(module, node)) is not None]


def _layer(module: fx.GraphModule, node: fx.Node) -> Layer | None:
    if node.target not in CONVOLUTIONS | LINEAR or node.meta.get(FLOAT):
        return None
    values = bound(node)
    source, weight, bias = (values[name] for name in ("input", "weight", "bias"))
    constants = [part for part in (weight, bias) if part is not None]
    if any(part.op != "get_attr" or len(part.users) > 1 for part in constants) or not is_floating(node):
        return None
    found = None if bias is None else constant_value(module, bias).detach()
    return Layer(node, source, constant_value(module, weight).detach(), found)


def steps(weight: Tensor) -> Tensor:
    """The distance of two int8 levels for every output channel of ``weight``, [out, 1, ...]; 1 for a channel of 0."""
    largest = weight.abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True)
    return torch.where(largest > 0, largest / LARGEST, torch.ones_like(largest))


def rounded(weight: Tensor) -> Tensor:
    """``weight`` [out, ...] on its int8 grid, to the nearest; the straight-through gradient (arXiv 1308.3432)."""
    scales = steps(weight.detach()).flatten()
    zeros = torch.zeros_like(scales, dtype=torch.int32)
    value: Tensor = torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -LARGEST, LARGEST)
    return value


def grid(found: Range) -> tuple[float, int]:
    """The step and the zero point of u8 levels over a range, widened to hold 0."""
    low, high = min(found[0], 0.0), max(found[1], 0.0)
    step = (high - low) / (LEVELS - 1)
    if not (math.isfinite(step) and step > torch.finfo(torch.float32).tiny):
        return 1.0, 0
    return step, max(0, min(LEVELS - 1, round(-low / step)))


def quantised(value: Tensor, found: Range) -> Tensor:
    """``value`` on the u8 levels of a range; values outside are clipped and pass no gradient."""
    return torch.fake_quantize_per_tensor_affine(value, *grid(found), 0, LEVELS - 1)


def readers(module: fx.GraphModule) -> set[fx.Node]:
    """The nodes that read their activations in int8: layers, and additions of two activations."""
    sums = {
        node
        for node in module.graph.nodes
        if node.target is aten.add.Tensor
        and is_floating(node)
        and len(activations(node)) == 2
        and not node.meta.get(FLOAT)
    }
    return sums | {layer.node for layer in layers(module)}


def activations(node: fx.Node) -> list[fx.Node]:
    """The floating point values that a node reads and that are no constants."""
    return [source for source in node.all_input_nodes if source.op == "placeholder" or is_floating(source)]


def simulate(
    program: Program, ranges: Mapping[str, Range], only: Collection[str] | None = None, weights: bool = True
) -> Program:
    """The program with the rounding of int8 in it, computed in float and differentiable by straight-through.

    ranges: as ``activation_ranges`` gives them. only: names of the nodes that compute in int8; None for all that can.
    weights: False leaves the weights as they are, for weights that are on their grid already.
    """

    def rewrite(module: fx.GraphModule) -> int:
        known = {layer.node: layer for layer in layers(module)}
        narrow = readers(module)
        chosen = [n for n in module.graph.nodes if n in narrow and (only is None or n.name in only)]
        for node in chosen:
            with module.graph.inserting_before(node):
                for source in activations(node):
                    if source.name in ranges:
                        seen = module.graph.call_function(quantised, (source, ranges[source.name]))
                        node.replace_input_with(source, seen)
                if weights and node in known:
                    weight = bound(node)["weight"]
                    node.replace_input_with(weight, module.graph.call_function(rounded, (weight,)))
        return len(chosen)

    return edit(program, "simulate", rewrite)


def sqnr_db(expected: Sequence[tuple[Tensor, ...]], got: Sequence[tuple[Tensor, ...]]) -> float:
    """Signal to noise over all samples of the output that has the least, in dB; finite values only."""
    found = []
    for index in range(len(expected[0])):
        signal = noise = 0.0
        for want, have in zip(expected, got, strict=True):
            finite = torch.isfinite(want[index])
            reference = want[index][finite].double()
            signal += float(reference.square().sum())
            noise += float((have[index][finite].double() - reference).square().sum())
        found.append(200.0 if noise == 0.0 else 10 * math.log10(max(signal, 1e-300) / noise))
    return min(found)


def outputs(program: Program, data: Sequence[Arrays]) -> list[tuple[Tensor, ...]]:
    """The outputs of every call."""
    return [program(*(torch.from_numpy(array) for array in call)) for call in data]
