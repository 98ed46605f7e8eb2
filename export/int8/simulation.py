"""Simulate int8 in float, to fit weights to the rounding and to rank blocks: ``simulate(program, ranges)``.

Weights are s8 per output channel with the largest magnitude at 127, as every backend's quantiser writes them.
Activations are u8 per tensor where a layer with weights or an addition reads them.
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
from hnas.export.graph.samples import Samples
from hnas.export.int8.ranges import Range

LARGEST = 127  # largest weight in int8; symmetric quantisers do not use -128
_LEVELS = 256  # of an activation


@dataclass(frozen=True, eq=False)
class QuantisedLayer:
    """Describe a convolution or linear layer whose weight and bias are constants that no other layer reads.

    weight: [out, in / groups, ...].
    bias: [out], or None.
    """

    node: fx.Node
    source: fx.Node
    weight: Tensor
    bias: Tensor | None

    @property
    def is_convolution(self) -> bool:
        """Return True for a convolution, False for a linear layer."""
        return self.node.target in CONVOLUTIONS

    @property
    def groups(self) -> int:
        """Return the number of groups; 1 for a linear layer."""
        return int(bound(self.node)["groups"]) if self.is_convolution else 1


def quantised_layers(module: fx.GraphModule) -> list[QuantisedLayer]:
    """Return the layers that compute in int8, in graph order.

    Layers that are marked as float, or have a computed or shared weight or bias, are left out.
    """
    return [layer for node in module.graph.nodes if (layer := _layer(module, node)) is not None]


def _layer(module: fx.GraphModule, node: fx.Node) -> QuantisedLayer | None:
    if node.target not in CONVOLUTIONS | LINEAR or node.meta.get(FLOAT):
        return None
    values = bound(node)
    source, weight, bias = (values[name] for name in ("input", "weight", "bias"))
    constants = [part for part in (weight, bias) if part is not None]
    if any(part.op != "get_attr" or len(part.users) > 1 for part in constants) or not is_floating(node):
        return None
    found = None if bias is None else constant_value(module, bias).detach()
    return QuantisedLayer(node, source, constant_value(module, weight).detach(), found)


def weight_steps(weight: Tensor) -> Tensor:
    """Return the int8 step of each output channel of ``weight``, [out, 1, ...]; 1 for a channel of zeros."""
    largest = weight.abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True)
    return torch.where(largest > 0, largest / LARGEST, torch.ones_like(largest))


def rounded(weight: Tensor) -> Tensor:
    """Round ``weight`` [out, ...] to its int8 grid, with the straight-through gradient (arXiv 1308.3432)."""
    scales = weight_steps(weight.detach()).flatten()
    zeros = torch.zeros_like(scales, dtype=torch.int32)
    value: Tensor = torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -LARGEST, LARGEST)
    return value


def grid(found: Range) -> tuple[float, int]:
    """Return the step and the zero point of u8 levels over a range, widened to include 0."""
    low, high = min(found[0], 0.0), max(found[1], 0.0)
    step = (high - low) / (_LEVELS - 1)
    if not (math.isfinite(step) and step > torch.finfo(torch.float32).tiny):
        return 1.0, 0
    return step, max(0, min(_LEVELS - 1, round(-low / step)))


def quantised(value: Tensor, found: Range) -> Tensor:
    """Round ``value`` to the u8 levels of a range; values outside are clipped and pass no gradient.

    The infinities of a mask stay: a range holds finite values only, and backends keep such a sum in float.
    """
    on_grid = torch.fake_quantize_per_tensor_affine(value, *grid(found), 0, _LEVELS - 1)
    return torch.where(value.isinf(), value, on_grid)


def readers(module: fx.GraphModule) -> set[fx.Node]:
    """Return the nodes that read their activations in int8: layers, and additions of two activations."""
    sums = {
        node
        for node in module.graph.nodes
        if node.target is aten.add.Tensor
        and is_floating(node)
        and len(activations(node)) == 2
        and not node.meta.get(FLOAT)
    }
    return sums | {layer.node for layer in quantised_layers(module)}


def activations(node: fx.Node) -> list[fx.Node]:
    """Return the floating-point values that a node reads, without constants."""
    return [source for source in node.all_input_nodes if source.op == "placeholder" or is_floating(source)]


def simulate(
    program: Program, ranges: Mapping[str, Range], only: Collection[str] | None = None, weights: bool = True
) -> Program:
    """Return the program with int8 rounding inserted, computed in float, with straight-through gradients.

    ranges: the result of ``activation_ranges``.
    only: names of the nodes that compute in int8; None for all that can.
    weights: False skips the rounding of weights that are on their grid already.

    Example: ``simulate(program, activation_ranges(program, samples))``.
    """

    def rewrite(module: fx.GraphModule) -> int:
        known = {layer.node: layer for layer in quantised_layers(module)}
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
    """Return the signal-to-noise ratio in dB over all samples: the lowest of all outputs.

    Only values that are finite in ``expected`` count. Without any noise the ratio is 200 dB.
    """
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


def run_samples(program: Program, samples: Samples) -> list[tuple[Tensor, ...]]:
    """Return the outputs of the program for each sample."""
    return [program(*(torch.from_numpy(array) for array in sample)) for sample in samples]
