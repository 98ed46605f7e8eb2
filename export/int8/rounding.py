"""Fit weights and biases to int8, layer by layer: ``correct_biases`` and ``round_weights``.

Each layer is fitted on the outputs of the quantised layers before it. Both edits return a float program. Rounded
weights lie exactly on the int8 grid that a backend's quantiser derives from them, because the largest magnitude of each
channel stays; the quantiser then rounds nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from hnas.export.graph.nodes import aten, bound, edit, set_weights
from hnas.export.graph.program import Program
from hnas.export.graph.samples import Samples
from hnas.export.int8.calibration import activation_ranges
from hnas.export.int8.ranges import Range
from hnas.export.int8.simulation import (
    LARGEST,
    QuantisedLayer,
    activations,
    quantised,
    quantised_layers,
    readers,
    rounded,
    weight_steps,
)

_BYTES = 1 << 30  # limit of the activations in memory; it limits the number of samples
_POSITIONS = 128  # output positions of a convolution used from each sample
_SWEEPS = 20  # over the columns of a weight; most layers need only a few

_Inputs = Sequence[Tensor]
_Fitted = tuple[Tensor, Tensor]  # weight and bias
_Fit = Callable[["_Job"], _Fitted]


@dataclass(frozen=True)
class _Job:
    """Hold a layer to fit.

    exact: the input of the layer in the float program, for every sample.
    coarse: its input in the int8 program, for every sample.
    """

    layer: QuantisedLayer
    exact: _Inputs
    coarse: _Inputs

    def shift(self, weight: Tensor, shrink: bool) -> Tensor:
        """Return the bias [out] that brings the mean of every output channel to that of the float output.

        The mean error is the sum of two parts, each a mean over the samples:

        1. Of the weights, on the exact inputs: corrected.
        2. Of the inputs: it differs between samples, and what they cannot tell from 0 would be added as noise. With
           ``shrink`` it is reduced by the non-negative garrote (Breiman 1995).
        """
        layer = self.layer
        bias = torch.zeros(len(weight), dtype=weight.dtype) if layer.bias is None else layer.bias
        own, other = [], []
        for x, seen in zip(self.exact, self.coarse, strict=True):  # a layer is linear: one run gives each difference
            own.append(_channels(layer, _run_layer(layer, x, layer.weight - weight, None)).double().mean(1))
            other.append(_channels(layer, _run_layer(layer, x - seen, weight, None)).double().mean(1))
        moved_by = _shrunk(torch.stack(other)) if shrink else torch.stack(other).mean(0)
        return bias + (torch.stack(own).mean(0) + moved_by).to(bias.dtype)  # cases 1 and 2


def correct_biases(
    program: Program, samples: Samples, ranges: Mapping[str, Range] | None = None, *, new: bool = True
) -> Program:
    """Subtract from each bias the mean int8 error of its channel, measured on ``samples`` (arXiv 1906.04721, 4.2).

    new: False: a layer without a bias gets none, which keeps the operators of the graph.

    1. A layer with a bias, and with ``new`` also one without: gets the corrected bias.
    2. A weight that is shared or computed: unchanged.
    """

    def fit(job: _Job) -> _Fitted:
        weight = job.layer.weight
        if job.layer.bias is None and not new:
            return weight, torch.zeros(len(weight), dtype=weight.dtype)
        return weight, job.shift(rounded(weight), shrink=True)

    return _fitted(program, samples, ranges, "correct_biases", fit)


def round_weights(program: Program, samples: Samples, ranges: Mapping[str, Range] | None = None) -> Program:
    """Round each weight up or down, so that the layer's output on ``samples`` gets nearer to the float output.

    The objective is AdaRound's (arXiv 2004.10568, eq. 20), on inputs computed by the quantised layers before. It is
    quadratic in the rounding, so the samples enter as one matrix. The search starts at the nearest rounding and flips
    single weights while that reduces the error. There is no annealing, and no layer gets worse.

    1. Convolutions in one and two dimensions, and linear layers: fitted; then their biases are corrected.
    2. Three dimensions, or padding given as a word: the nearest rounding; biases are corrected.
    3. A weight that is shared or computed: unchanged.
    """

    def fit(job: _Job) -> _Fitted:
        weight = _flipped(job) if _unfoldable(job.layer) else rounded(job.layer.weight)  # cases 1 and 2
        return weight, job.shift(weight, shrink=False)  # flips count on centred errors

    return _fitted(program, samples, ranges, "round_weights", fit)


def _fitted(program: Program, samples: Samples, ranges: Mapping[str, Range] | None, name: str, fit: _Fit) -> Program:
    ranges = activation_ranges(program, samples) if ranges is None else ranges

    def rewrite(module: fx.GraphModule) -> int:
        found = _walk(module, _affordable(module, samples), ranges, fit)
        count = 0
        for layer in quantised_layers(module):
            weight, bias = found[layer.node]
            if layer.bias is not None or bias.any() or not torch.equal(weight, layer.weight):
                set_weights(module, layer.node, weight, bias)
                count += 1
        return count

    return edit(program, name, rewrite)


def _affordable(module: fx.GraphModule, samples: Samples) -> Samples:
    """Return as many samples as fit into _BYTES, but at least eight. Both graphs hold a few values at a time."""
    values = [node.meta["val"] for node in module.graph.nodes if isinstance(node.meta.get("val"), Tensor)]
    largest = max((value.numel() * value.element_size() for value in values), default=1)
    return samples[: max(8, _BYTES // (8 * max(1, largest)))]


def _walk(module: fx.GraphModule, samples: Samples, ranges: Mapping[str, Range], fit: _Fit) -> dict[fx.Node, _Fitted]:
    """Run the float and the quantised graph in parallel, node by node on all samples, and fit each layer reached."""
    known = {layer.node: layer for layer in quantised_layers(module)}  # the others are case 3
    coarse_readers = readers(module)
    interpreter = fx.Interpreter(module)
    exact: dict[fx.Node, list[Any]] = {}
    coarse: dict[fx.Node, list[Any]] = {}
    found: dict[fx.Node, _Fitted] = {}
    inputs = iter(zip(*samples, strict=True))
    left = {node: len(node.users) for node in module.graph.nodes}

    def run_node(node: fx.Node, values: Mapping[fx.Node, list[Any]], reads: Callable[[fx.Node, Any], Any]) -> list[Any]:
        results = []
        for index in range(len(samples)):

            def value(source: fx.Node, index: int = index) -> Any:
                return reads(source, values[source][index])

            args, kwargs = fx.map_arg((node.args, node.kwargs), value)
            results.append(getattr(interpreter, node.op)(node.target, args, kwargs))
        return results

    with torch.no_grad():
        for node in module.graph.nodes:
            if node.op == "output":
                continue
            if node.op == "placeholder":
                exact[node] = coarse[node] = [torch.from_numpy(array) for array in next(inputs)]
                continue
            if node.op == "get_attr":
                exact[node] = coarse[node] = [interpreter.fetch_attr(str(node.target))] * len(samples)
                continue
            narrow = set(activations(node)) if node in coarse_readers else set()

            def read(source: fx.Node, value: Any, narrow: set[fx.Node] = narrow) -> Any:
                return quantised(value, ranges[source.name]) if source in narrow else value

            if node in known:
                layer = known[node]
                seen = [read(layer.source, value) for value in coarse[layer.source]]
                found[node] = fit(_Job(layer, exact[layer.source], seen))
                coarse[node] = [_run_layer(layer, value, rounded(found[node][0]), found[node][1]) for value in seen]
            else:
                coarse[node] = run_node(node, coarse, read)
            exact[node] = run_node(node, exact, lambda _, value: value)
            for source in node.all_input_nodes:  # free values that no later node reads
                left[source] -= 1
                if not left[source]:
                    del exact[source], coarse[source]
    return found


def _run_layer(layer: QuantisedLayer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the output of a layer for ``x`` with another weight and bias."""
    rest = {key: value for key, value in bound(layer.node).items() if key not in ("input", "weight", "bias")}
    result: Tensor = layer.node.target(x, weight, bias, **rest)  # type: ignore[operator]  # an operator, not the name of a module
    return result


def _shrunk(errors: Tensor) -> Tensor:
    """Return the mean of ``errors`` [samples, out] over the samples, times 1 - (standard error / mean)^2 or 0."""
    mean = errors.mean(0)
    if len(errors) == 1:
        return mean
    spread = errors.var(0) / len(errors)
    return mean * (1 - spread / mean.square().clamp(min=1e-300)).clamp(min=0)


def _channels(layer: QuantisedLayer, output: Tensor) -> Tensor:
    """Return an output as [channels, everything else]."""
    axis = output.ndim - layer.weight.ndim + 1 if layer.is_convolution else output.ndim - 1
    return output.movedim(axis, 0).flatten(1)


def _unfoldable(layer: QuantisedLayer) -> bool:
    """Return True if the inputs can be unfolded: in case 1 of ``round_weights``, with a batch dimension."""
    plain = layer.node.target in (aten.conv1d.default, aten.conv2d.default)
    return not layer.is_convolution or (plain and layer.node.meta["val"].ndim == layer.weight.ndim)


def _columns(layer: QuantisedLayer, x: Tensor) -> Tensor:
    """Return the inputs of each output position, [groups, columns, positions]."""
    if not layer.is_convolution:
        return x.reshape(1, -1, x.shape[-1]).transpose(1, 2)
    values = bound(layer.node)
    shape = [tuple(layer.weight.shape[2:]), *(tuple(values[key]) for key in ("dilation", "padding", "stride"))]
    if layer.weight.ndim == 3:
        x, shape = x.unsqueeze(2), [(flat, *rest) for flat, rest in zip((1, 1, 0, 1), shape, strict=True)]
    unfolded = F.unfold(x, *shape)
    return unfolded.movedim(0, 1).reshape(layer.groups, unfolded.shape[1] // layer.groups, -1)


def _flipped(job: _Job) -> Tensor:
    """Return the weight on its grid, flipped column by column to reduce the squared error of the output.

    ``H`` is the covariance of the inputs, and ``R`` the covariance of inputs and error. Changing column j by d changes
    the error of a row by 2 d R_j + d^2 H_jj. The bias corrects the means.
    """
    layer = job.layer
    gram, cross = _moments(job)
    groups, size = gram.shape[0], gram.shape[1]
    scale = weight_steps(layer.weight).reshape(groups, -1, 1).double()
    exact = layer.weight.reshape(groups, -1, size).double() / scale
    nearest = exact.round().clamp(-LARGEST, LARGEST)
    other = torch.where(exact > nearest, nearest + 1, nearest - 1).clamp(-LARGEST, LARGEST)
    on_grid = (exact - nearest).abs() < 1e-3  # includes the largest weight of a channel, which defines the step
    other = torch.where(on_grid, nearest, other)
    residual = (nearest * scale) @ gram - cross
    for _ in range(_SWEEPS):
        flips = 0
        for j in range(size):
            step = (other[:, :, j] - nearest[:, :, j]) * scale[:, :, 0]
            gain = 2 * step * residual[:, :, j] + step.square() * gram[:, j, j].unsqueeze(1)
            flip = gain < -1e-9 * cross.abs().amax()
            flips += int(flip.sum())
            nearest[:, :, j], other[:, :, j] = (
                torch.where(flip, other[:, :, j], nearest[:, :, j]),
                torch.where(flip, nearest[:, :, j], other[:, :, j]),
            )
            residual += torch.where(flip, step, 0.0).unsqueeze(2) * gram[:, j].unsqueeze(1)
        if not flips:
            break
    return (nearest * scale).reshape(layer.weight.shape).to(layer.weight.dtype)


def _moments(job: _Job) -> tuple[Tensor, Tensor]:
    """Return the covariance of int8 inputs [groups, in, in], and of float outputs and int8 inputs [groups, out, in]."""
    layer = job.layer
    generator = torch.Generator().manual_seed(0)
    seen, wanted = [], []
    for x, coarse in zip(job.exact, job.coarse, strict=True):
        columns = _columns(layer, coarse)
        output = layer.weight.reshape(layer.groups, -1, columns.shape[1]) @ _columns(layer, x)
        places = torch.randperm(columns.shape[2], generator=generator)[:_POSITIONS]
        seen.append(columns[:, :, places])
        wanted.append(output[:, :, places])
    inputs, outputs = torch.cat(seen, 2).double(), torch.cat(wanted, 2).double()
    inputs -= inputs.mean(2, keepdim=True)
    outputs -= outputs.mean(2, keepdim=True)
    return inputs @ inputs.transpose(1, 2), outputs @ inputs.transpose(1, 2)
