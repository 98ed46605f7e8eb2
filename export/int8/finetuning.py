"""Train weights for int8 with the float program as teacher, without labels: ``finetune(program, samples)``."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, fx, nn

from hnas.export.graph.nodes import bound, constant_value, edit, set_weights
from hnas.export.graph.program import Program, as_tuple
from hnas.export.graph.samples import Samples
from hnas.export.int8.calibration import activation_ranges
from hnas.export.int8.ranges import Range
from hnas.export.int8.simulation import quantised_layers, run_samples, simulate

_BATCH = 16  # samples per update


def finetune(
    program: Program,
    samples: Samples,
    ranges: Mapping[str, Range] | None = None,
    *,
    teacher: Program | None = None,
    epochs: int = 8,
    rate: float = 1e-4,
    seed: int = 0,
) -> Program:
    """Train weights and biases until the int8 program gives the outputs of the float program on ``samples``.

    Forward passes round weights and activations like int8; gradients ignore the rounding (straight-through estimator,
    arXiv 1308.3432; arXiv 1806.08342, 3.2). The loss is the squared distance to the float outputs, each output divided
    by its spread. The optimiser is Adam with a cosine schedule from ``rate`` to 0.

    samples: inputs to train on, in updates of 16.
    ranges: the result of ``activation_ranges`` on ``samples``; None computes it. Training does not change the ranges,
        because a backend calibrates again.
    teacher: the program whose outputs are the target; None for ``program`` itself.
    epochs: passes over ``samples``.
    rate: initial learning rate.
    seed: seed of the random order of the samples.

    1. Convolutions and linear layers with constant weights of their own: trained.
    2. Everything else, including a batch norm that no layer absorbed: unchanged.
    """
    ranges = activation_ranges(program, samples) if ranges is None else ranges
    whole = _takes_batches(program, samples)
    answers = run_samples(teacher or program, samples)
    spread = [max(float(torch.stack(values).double().std()), 1e-12) for values in zip(*answers, strict=True)]
    student = copy.deepcopy(simulate(program, ranges).module)
    tensors = _trained(student, program)
    optimiser = torch.optim.Adam(list(tensors.values()), lr=rate)
    generator = torch.Generator().manual_seed(seed)
    total = epochs * -(-len(samples) // _BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, total))
    with torch.enable_grad():
        for chosen in _batches(len(samples), epochs, generator):
            optimiser.zero_grad()
            for part in [chosen] if whole else [[index] for index in chosen]:
                got = as_tuple(student(*_stacked([samples[index] for index in part])))
                want = [torch.cat(values) for values in zip(*(answers[index] for index in part), strict=True)]
                pairs = zip(got, want, spread, strict=True)
                loss = sum((((g - w) / s).square().mean() for g, w, s in pairs), torch.zeros(()))
                (loss * len(part) / len(chosen)).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()

    def rewrite(module: fx.GraphModule) -> int:
        found = quantised_layers(module)  # case 1; others are case 2
        for layer in found:
            values = bound(layer.node)
            weight = tensors[str(values["weight"].target)].detach()
            bias = weight.new_zeros(len(weight)) if values["bias"] is None else tensors[str(values["bias"].target)]
            set_weights(module, layer.node, weight, bias.detach())
        return len(found)

    return edit(program, "finetune", rewrite)


def _trained(student: fx.GraphModule, program: Program) -> dict[str, Tensor]:
    """Make the weights and biases of the layers in ``student`` parameters of their own, and return them by name."""
    names = [
        str(part.target)
        for layer in quantised_layers(program.module)
        for part in (bound(layer.node)["weight"], bound(layer.node)["bias"])
        if part is not None
    ]
    found: dict[str, Tensor] = {}
    for node in student.graph.nodes:
        if node.op == "get_attr" and str(node.target) in names:
            value = constant_value(student, node).detach().clone()
            owner, _, last = str(node.target).rpartition(".")
            part = student.get_submodule(owner)
            part._parameters.pop(last, None)
            part._buffers.pop(last, None)
            found[str(node.target)] = parameter = nn.Parameter(value)
            setattr(part, last, parameter)
    return found


def _takes_batches(program: Program, samples: Samples) -> bool:
    """Return whether a batch of two samples has the outputs of the single samples. Graphs with fixed shapes do not."""
    pair = [samples[0], samples[-1]]
    try:
        stacked = program(*_stacked(pair))
    except (RuntimeError, ValueError):
        return False
    single = [torch.cat(values) for values in zip(*run_samples(program, pair), strict=True)]
    same = zip(stacked, single, strict=True)
    return all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in same)


def _stacked(samples: Samples) -> list[Tensor]:
    return [torch.cat([torch.from_numpy(array) for array in arrays]) for arrays in zip(*samples, strict=True)]


def _batches(count: int, epochs: int, generator: torch.Generator) -> Iterator[list[int]]:
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator).tolist()
        yield from (order[start : start + _BATCH] for start in range(0, count, _BATCH))
