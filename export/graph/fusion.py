"""Which passes run on a program, in which order, for which backend; each one counted, and verified against its input.

A pass takes a program and returns another that computes the same; it copies the graph and never touches its input.
Runtimes have rewrites of their own. Ours come first so that all of them, and the quantisers, see the same graph.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hnas.export.device.errors import ExportError
from hnas.export.graph.passes.activations import fuse_activations
from hnas.export.graph.passes.cleaning import drop_dropout, fold_constants
from hnas.export.graph.passes.convolutions import fold_pads, merge_branches
from hnas.export.graph.passes.gates import clip_hardsigmoids, pooled_linears, raise_activations
from hnas.export.graph.passes.layout import cancel_permutes, flatten_norms, merge_reshapes, pointwise_convolutions
from hnas.export.graph.passes.projections import split_projections
from hnas.export.graph.passes.scales import fold_batchnorm, fold_scales
from hnas.export.graph.program import Program

Pass = Callable[[Program], Program]

LIMIT = 1e-4  # largest error of a pass, as a part of the output's spread
_ROUNDINGS = 10  # or as often what float32 rounds by itself, in a program that amplifies that

_CLEAN: tuple[Pass, ...] = (drop_dropout, fold_constants, fuse_activations)
_ORDER: tuple[Pass, ...] = (merge_reshapes, cancel_permutes)
_FOLD: tuple[Pass, ...] = (fold_pads, fold_batchnorm, fold_scales, merge_branches)
PASSES: tuple[Pass, ...] = (*_CLEAN, *_ORDER, *_FOLD, raise_activations)
# What was measured to gain time there, in turns with the graph without it; docs/fusion.md has the figures.
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
    """The passes of ``backend``: those of all, with those that make its artifacts faster."""
    return _MORE.get(backend, PASSES)


def fuse(program: Program, passes: Sequence[Pass] = PASSES) -> Program:
    """Run the passes in order, each one verified against its input; ExportError names a pass that changed the outputs.

    Verified on the example inputs and on one seeded random draw (zeros as example would hide any error). The largest
    error is ``LIMIT``, or ``_ROUNDINGS`` times what float32 makes of the program, where that is more.
    """
    probes = [program.inputs, noise(program.inputs, seed=0)]
    expected = [program(*probe) for probe in probes]
    for function in passes:
        candidate = function(program)
        if candidate is program or candidate.fired[-1][1] == 0:
            program = replace(program, fired=candidate.fired)
            continue
        got = [candidate(*probe) for probe in probes]
        name = candidate.fired[-1][0]
        for probe, want, have in zip(probes, expected, got, strict=True):
            error = _relative_error(want, have)
            if not error <= LIMIT and not error <= (limit := max(LIMIT, _ROUNDINGS * _rounding(program, probe, want))):
                raise ExportError(f"{name} changed the output: error {error:.1e} of its spread (limit {limit:g})")
        program, expected = candidate, got
    return program


def noise(inputs: Sequence[Tensor], seed: int) -> tuple[Tensor, ...]:
    """Random inputs of the same mean and spread (1 where there is none); inputs that are not floating point stay."""
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for value in inputs:
        if value.is_floating_point():
            spread = value.double().std().item() if value.numel() > 1 else 0.0
            sample = torch.randn(value.shape, generator=generator, dtype=torch.float64) * (spread or 1.0)
            value = (sample + value.double().mean()).to(value.dtype)
        drawn.append(value)
    return tuple(drawn)


def _rounding(program: Program, probe: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """How far float32 takes the outputs from float64, as a part of the spread; 0 where the graph insists on types."""
    try:
        double = replace(program, module=copy.deepcopy(program.module).double())
        exact = double(*(value.double() if value.is_floating_point() else value for value in probe))
    except RuntimeError:
        return 0.0
    error = _relative_error([value.to(have.dtype) for value, have in zip(exact, got, strict=True)], got)
    return error if math.isfinite(error) else 0.0


def _relative_error(expected: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """Largest error over the outputs, as a part of each one's spread; NaN where only one of the two is finite."""
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
