"""Run the passes of a backend in order, and verify each pass against its input.

Use: ``fuse(program, passes_for("onnxruntime"))``.

A pass takes a program and returns another program that computes the same outputs. A pass copies the graph and never
changes the given program. Runtimes rewrite the graph too. The passes run before that, so that calibration and
quantisers get the fused graph.
"""

import copy
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hnas.export.device.errors import ExportError
from hnas.export.graph.dynamic import with_size
from hnas.export.graph.passes.activation_order import raise_activations
from hnas.export.graph.passes.activations import fuse_activations
from hnas.export.graph.passes.batchnorm import fold_batchnorm
from hnas.export.graph.passes.branches import merge_branches
from hnas.export.graph.passes.constants import fold_constants
from hnas.export.graph.passes.gates import clip_hardsigmoids, pooled_linears
from hnas.export.graph.passes.noops import drop_dropout
from hnas.export.graph.passes.norms import flatten_norms
from hnas.export.graph.passes.pads import fold_pads
from hnas.export.graph.passes.permutes import cancel_permutes, pointwise_convolutions
from hnas.export.graph.passes.projections import split_projections
from hnas.export.graph.passes.reshapes import merge_reshapes
from hnas.export.graph.passes.scales import fold_scales
from hnas.export.graph.program import Program
from hnas.export.graph.samples import Sample, noise

Pass = Callable[[Program], Program]

LIMIT = 1e-4  # largest error of a pass, relative to the spread of the output
_ROUNDINGS = 10  # the limit is this multiple of the float32 rounding error where that is larger than LIMIT
_EXACT_DB = 200.0  # SQNR without noise

_CLEAN: tuple[Pass, ...] = (drop_dropout, fold_constants, fuse_activations)
_ORDER: tuple[Pass, ...] = (merge_reshapes, cancel_permutes)
_FOLD: tuple[Pass, ...] = (fold_pads, fold_batchnorm, fold_scales, merge_branches)
PASSES: tuple[Pass, ...] = (*_CLEAN, *_ORDER, *_FOLD, raise_activations)
# Each additional pass was measured to save time on that backend (interleaved runs); docs/fusion.md has the figures.
_MORE: Mapping[str, tuple[Pass, ...]] = {
    "onnxruntime": (
        *_CLEAN,
        split_projections,
        *_ORDER,
        pointwise_convolutions,
        *_FOLD,
        pooled_linears,
        raise_activations,
        clip_hardsigmoids,
    ),
    "openvino": (
        *_CLEAN,
        split_projections,
        *_ORDER,
        pointwise_convolutions,
        *_FOLD,
        pooled_linears,
        raise_activations,
        flatten_norms,
    ),
    "tflite": (*_CLEAN, split_projections, *_ORDER, *_FOLD, raise_activations),
}


def passes_for(backend: str) -> tuple[Pass, ...]:
    """Return the passes for ``backend``: the common passes, and additional ones that make its artifacts faster."""
    return _MORE.get(backend, PASSES)


class _WrongPass(ExportError):
    """A pass changed the outputs. ``name`` is that of the pass."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"{name} {what}")
        self.name = name


def fuse_safely(program: Program, backend: str, without: Collection[str] = ()) -> tuple[Program, list[str]]:
    """Run the passes of ``backend``, except those named in ``without`` and those that change the outputs.

    Return the program, and a remark on each pass that changed the outputs.
    """
    remarks: list[str] = []
    passes = [function for function in passes_for(backend) if function.__name__ not in without]
    while True:
        try:
            return fuse(program, passes), remarks
        except _WrongPass as error:
            remarks.append(f"left out {error.name}: it {str(error).removeprefix(error.name).strip()}")
            passes = [function for function in passes if function.__name__ != error.name]


def fuse(program: Program, passes: Sequence[Pass] = PASSES) -> Program:
    """Run the passes in order, and verify the output of each pass against its input.

    The check uses the example inputs and one seeded random draw, because examples of zeros would hide any error. The
    largest allowed error is ``LIMIT``, or ten times the program's own float32 rounding error where that is larger.

    Raises:
        _WrongPass: a pass changed the outputs; the message names the pass.

    Example: ``fuse(capture(net, inputs), passes_for("openvino")).fired``.
    """
    probes = [program.inputs, noise_tensors(program.inputs, seed=0)]
    if program.dynamic is not None:
        probes.append(noise_tensors(with_size(program.inputs, program.dynamic, 3), seed=1))
    expected = [program(*probe) for probe in probes]
    for function in passes:
        candidate = _tried(function, program, probes)
        if candidate is program or candidate.fired[-1][1] == 0:
            program = replace(program, fired=candidate.fired)
            continue
        got = [candidate(*probe) for probe in probes]
        name = candidate.fired[-1][0]
        for probe, want, have in zip(probes, expected, got, strict=True):
            error = _relative_error(want, have)
            if not error <= LIMIT and not error <= (limit := max(LIMIT, _ROUNDINGS * _rounding(program, probe, want))):
                raise _WrongPass(name, f"changed the output: error {error:.1e} of its spread (limit {limit:g})")
        program, expected = candidate, got
    return program


def _tried(function: Pass, program: Program, probes: Sequence[Sequence[Tensor]]) -> Program:
    """Return the program after a pass. Raise _WrongPass where the pass does not take an open size."""
    if program.dynamic is None:
        return function(program)
    try:
        candidate = function(program)
        candidate(*probes[-1])
    except Exception as error:  # a pass may read a size as a number
        raise _WrongPass(function.__name__, f"needs a fixed {program.dynamic.name}") from error
    return candidate


def noise_tensors(inputs: Sequence[Tensor], seed: int) -> tuple[Tensor, ...]:
    """Return seeded noise like the inputs, as `hnas.export.graph.samples.noise` draws it."""
    arrays = [(value.float() if value.dtype == torch.bfloat16 else value).numpy() for value in inputs]
    drawn = noise(tuple(arrays), seed)
    return tuple(torch.from_numpy(value).to(like.dtype) for value, like in zip(drawn, inputs, strict=True))


def rounding_db(program: Program, sample: Sample) -> float | None:
    """Return the SQNR in dB of the outputs in float32 against float64; None if the graph cannot run in float64."""
    values = [torch.from_numpy(value) for value in sample]
    exact = _in_double(program, values)
    if exact is None:
        return None
    levels = []
    for want, have in zip(exact, program(*values), strict=True):
        finite = torch.isfinite(want)
        noise = (have[finite].double() - want[finite]).square().sum().item()
        signal = want[finite].square().sum().item()
        levels.append(10 * math.log10(signal / noise) if signal > 0 and noise > 0 else _EXACT_DB)
    return min(levels)


def _in_double(program: Program, probe: Sequence[Tensor]) -> list[Tensor] | None:
    """Return the outputs in float64; None if the graph cannot run in it, as one that converts to float32."""
    try:
        double = replace(program, module=copy.deepcopy(program.module).double())
        return [value.double() for value in double(*(v.double() if v.is_floating_point() else v for v in probe))]
    except RuntimeError:
        return None


def _rounding(program: Program, probe: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """Return the error of float32 against float64, relative to the spread; 0 if the graph cannot run in float64."""
    exact = _in_double(program, probe)
    if exact is None:
        return 0.0
    error = _relative_error([value.to(have.dtype) for value, have in zip(exact, got, strict=True)], got)
    return error if math.isfinite(error) else 0.0


def _relative_error(expected: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """Return the largest error over the outputs, each divided by the spread (maximum - minimum) of its expected values.

    Return infinity if types or shapes differ, or if a value is finite in only one of the two.
    """
    if [value.shape for value in expected] != [value.shape for value in got]:
        return float("inf")
    worst = 0.0
    for want, have in zip(expected, got, strict=True):
        finite = torch.isfinite(want)
        if want.dtype != have.dtype or not torch.equal(finite, torch.isfinite(have)):
            return float("inf")
        reference, difference = want[finite].double(), (have[finite].double() - want[finite].double()).abs()
        if reference.numel():
            spread = (reference.max() - reference.min()).item() or reference.abs().max().item() or 1.0
            worst = max(worst, difference.max().item() / spread)
    return worst
