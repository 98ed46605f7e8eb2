"""Weights and biases fitted to int8 layer by layer: each on the inputs that the quantised layers before it give.

Both edits return a float program. Rounded weights lie ON the int8 grid that a backend's quantiser will derive from them
(the largest magnitude of a channel stays), so that it rounds nothing.
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
from hnas.export.graph.samples import Arrays
from hnas.export.int8.calibration import Range, activation_ranges
from hnas.export.int8.simulation import LARGEST, Layer, activations, layers, quantised, readers, rounded, steps

BYTES = 1 << 30  # of activations held at once; fewer samples are used where it would be more
_POSITIONS = 128  # of a convolution's output that are looked at, for each sample
SWEEPS = 20  # over the columns of a weight; most layers are done after a few

Inputs = Sequence[Tensor]
Fitted = tuple[Tensor, Tensor]  # weight and bias
_Fit = Callable[["_Job"], Fitted]


@dataclass(frozen=True)
class _Job:
    """A layer to fit: its inputs in the float program, and those it will have in int8, for every sample."""

    layer: Layer
    exact: Inputs
    coarse: Inputs

    def shift(self, weight: Tensor) -> Tensor:
        """The bias that gives the layer with ``weight`` its float output's mean in every channel, [out]."""
        layer = self.layer
        bias = torch.zeros(len(weight), dtype=weight.dtype) if layer.bias is None else layer.bias
        total, count = torch.zeros(len(weight), dtype=torch.float64), 0
        for x, seen in zip(self.exact, self.coarse, strict=True):
            error = _channels(layer, run(layer, x, layer.weight, bias) - run(layer, seen, weight, bias))
            total += error.double().sum(1)
            count += error.shape[1]
        return bias + (total / count).to(bias.dtype)


def correct_biases(program: Program, data: Sequence[Arrays], ranges: Mapping[str, Range] | None = None) -> Program:
    """Take the mean error that int8 makes in each channel out of the bias (arXiv 1906.04721, 4.2, measured on data).

    1. A layer with or without a bias: it has the corrected one.
    2. A weight that is shared or computed: left alone.
    """

    def fit(job: _Job) -> Fitted:
        return job.layer.weight, job.shift(rounded(job.layer.weight))

    return _fitted(program, data, ranges, "correct_biases", fit)


def round_weights(program: Program, data: Sequence[Arrays], ranges: Mapping[str, Range] | None = None) -> Program:
    """Round every weight up or down, whichever way the layer's output on ``data`` comes out nearest to the float one.

    The objective is AdaRound's (arXiv 2004.10568, eq. 20, on inputs as the quantised layers before give them). It is
    quadratic in the rounding, so that the samples enter as one matrix; single weights are turned over as long as that
    makes the error less, from the nearest rounding on. Nothing is annealed and no layer gets worse.

    1. Convolutions in one and two dimensions and linear layers: fitted, then their biases corrected.
    2. Three dimensions, or padding given in words: the nearest rounding, biases corrected.
    3. A weight that is shared or computed: left alone.
    """

    def fit(job: _Job) -> Fitted:
        weight = _turned(job) if _unfoldable(job.layer) else rounded(job.layer.weight)
        return weight, job.shift(weight)

    return _fitted(program, data, ranges, "round_weights", fit)


def _fitted(
    program: Program, data: Sequence[Arrays], ranges: Mapping[str, Range] | None, name: str, fit: _Fit
) -> Program:
    ranges = activation_ranges(program, data) if ranges is None else ranges

    def rewrite(module: fx.GraphModule) -> int:
        found = _walk(module, _affordable(module, data), ranges, fit)
        for node, (weight, bias) in found.items():
            set_weights(module, node, weight, bias)
        return len(found)

    return edit(program, name, rewrite)


def _affordable(module: fx.GraphModule, data: Sequence[Arrays]) -> Sequence[Arrays]:
    """As many of the samples as fit into BYTES, at least eight: two streams, of which a few values live at once."""
    values = [node.meta["val"] for node in module.graph.nodes if isinstance(node.meta.get("val"), Tensor)]
    largest = max((value.numel() * value.element_size() for value in values), default=1)
    return data[: max(8, BYTES // (8 * max(1, largest)))]


def _walk(
    module: fx.GraphModule, data: Sequence[Arrays], ranges: Mapping[str, Range], fit: _Fit
) -> dict[fx.Node, Fitted]:
    """Run the float and the quantised graph side by side, one node for all samples, and fit each layer on the way."""
    known = {layer.node: layer for layer in layers(module)}
    coarse_readers = readers(module)
    interpreter = fx.Interpreter(module)
    exact: dict[fx.Node, list[Any]] = {}
    coarse: dict[fx.Node, list[Any]] = {}
    found: dict[fx.Node, Fitted] = {}
    inputs = iter(zip(*data, strict=True))
    left = {node: len(node.users) for node in module.graph.nodes}

    def run_node(node: fx.Node, values: Mapping[fx.Node, list[Any]], reads: Callable[[fx.Node, Any], Any]) -> list[Any]:
        results = []
        for index in range(len(data)):
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n, i=index: reads(n, values[n][i]))  # type: ignore[misc]
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
                exact[node] = coarse[node] = [interpreter.fetch_attr(str(node.target))] * len(data)
                continue
            narrow = set(activations(node)) if node in coarse_readers else set()

            def read(source: fx.Node, value: Any, narrow: set[fx.Node] = narrow) -> Any:
                return quantised(value, ranges[source.name]) if source in narrow else value

            if node in known:
                layer = known[node]
                seen = [read(layer.source, value) for value in coarse[layer.source]]
                found[node] = fit(_Job(layer, exact[layer.source], seen))
                coarse[node] = [run(layer, value, rounded(found[node][0]), found[node][1]) for value in seen]
            else:
                coarse[node] = run_node(node, coarse, read)
            exact[node] = run_node(node, exact, lambda _, value: value)
            for source in node.all_input_nodes:  # what nobody reads any more
                left[source] -= 1
                if not left[source]:
                    del exact[source], coarse[source]
    return found


def run(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The output of a layer for ``x`` with another weight and bias."""
    rest = {key: value for key, value in bound(layer.node).items() if key not in ("input", "weight", "bias")}
    result: Tensor = layer.node.target(x, weight, bias, **rest)  # type: ignore[operator]
    return result


def _channels(layer: Layer, output: Tensor) -> Tensor:
    """An output as [channels, everything else]."""
    axis = output.ndim - layer.weight.ndim + 1 if layer.is_convolution else output.ndim - 1
    return output.movedim(axis, 0).flatten(1)


def _unfoldable(layer: Layer) -> bool:
    """Cases 1 and 2 of ``round_weights``; a convolution without a batch dimension is left out, too."""
    plain = layer.node.target in (aten.conv1d.default, aten.conv2d.default)
    return not layer.is_convolution or (plain and layer.node.meta["val"].ndim == layer.weight.ndim)


def _columns(layer: Layer, x: Tensor) -> Tensor:
    """What each output position multiplies with the weight: [groups, columns, positions]."""
    if not layer.is_convolution:
        return x.reshape(1, -1, x.shape[-1]).transpose(1, 2)
    values = bound(layer.node)
    shape = [tuple(layer.weight.shape[2:]), *(tuple(values[key]) for key in ("dilation", "padding", "stride"))]
    if layer.weight.ndim == 3:
        x, shape = x.unsqueeze(2), [(flat, *rest) for flat, rest in zip((1, 1, 0, 1), shape, strict=True)]
    unfolded = F.unfold(x, *shape)
    return unfolded.movedim(0, 1).reshape(layer.groups, unfolded.shape[1] // layer.groups, -1)


def _turned(job: _Job) -> Tensor:
    """The weight on its grid, turned column by column to the side that lessens the squared error of the output.

    With ``H`` the inputs' covariance and ``R`` the covariance of inputs and error, turning column j by d changes the
    error of a row by 2 d R_j + d^2 H_jj. Means are left to the bias.
    """
    layer = job.layer
    gram, cross = _moments(job)
    groups, size = gram.shape[0], gram.shape[1]
    scale = steps(layer.weight).reshape(groups, -1, 1).double()
    exact = layer.weight.reshape(groups, -1, size).double() / scale
    nearest = exact.round().clamp(-LARGEST, LARGEST)
    other = torch.where(exact > nearest, nearest + 1, nearest - 1).clamp(-LARGEST, LARGEST)
    on_grid = (exact - nearest).abs() < 1e-3  # the largest of its channel above all: it holds the scale
    other = torch.where(on_grid, nearest, other)
    residual = (nearest * scale) @ gram - cross
    for _ in range(SWEEPS):
        turned = 0
        for j in range(size):
            step = (other[:, :, j] - nearest[:, :, j]) * scale[:, :, 0]
            gain = 2 * step * residual[:, :, j] + step.square() * gram[:, j, j].unsqueeze(1)
            flip = gain < -1e-9 * cross.abs().amax()
            turned += int(flip.sum())
            nearest[:, :, j], other[:, :, j] = (
                torch.where(flip, other[:, :, j], nearest[:, :, j]),
                torch.where(flip, nearest[:, :, j], other[:, :, j]),
            )
            residual += torch.where(flip, step, 0.0).unsqueeze(2) * gram[:, j].unsqueeze(1)
        if not turned:
            break
    return (nearest * scale).reshape(layer.weight.shape).to(layer.weight.dtype)


def _moments(job: _Job) -> tuple[Tensor, Tensor]:
    """Covariance of the coarse inputs [groups, in, in], and of float outputs and coarse inputs [groups, out, in]."""
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
