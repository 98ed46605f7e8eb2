"""A short quantisation-aware training: the rounding is in the graph, the float program is the teacher, no labels."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from hnas.export.graph.nodes import bound, constant_value, edit, set_weights
from hnas.export.graph.program import Program, as_tuple
from hnas.export.graph.samples import Arrays
from hnas.export.int8.calibration import Range, activation_ranges
from hnas.export.int8.simulation import layers, outputs, simulate

BATCH = 16  # samples an update


def finetune(
    program: Program,
    data: Sequence[Arrays],
    ranges: Mapping[str, Range] | None = None,
    *,
    teacher: Program | None = None,
    epochs: int = 8,
    rate: float = 1e-4,
    seed: int = 0,
) -> Program:
    """Train weights and biases so that the program in int8 answers ``data`` as the program in float does.

    Forward passes round weights and activations as int8 will, backward passes see through it (straight-through,
    arXiv 1308.3432; arXiv 1806.08342, 3.2). The loss is the squared distance to the float outputs, each output over its
    own spread. ``teacher`` is the program whose answers they are where an edit has moved this one from it. Adam at
    ``rate``, falling to 0 as a cosine. Ranges stay as they were: a backend calibrates its own.

    1. Convolutions and linear layers with constant weights of their own: trained.
    2. Everything else, a batch norm that no layer took in too: stays as it is.
    """
    ranges = activation_ranges(program, data) if ranges is None else ranges
    whole = _takes_batches(program, data)
    answers = outputs(teacher or program, data)
    spread = [max(float(torch.stack(values).double().std()), 1e-12) for values in zip(*answers, strict=True)]
    student = copy.deepcopy(simulate(program, ranges).module)
    tensors = _trained(student, program)
    optimiser = torch.optim.Adam(list(tensors.values()), lr=rate)
    generator = torch.Generator().manual_seed(seed)
    total = epochs * -(-len(data) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, total))
    with torch.enable_grad():
        for chosen in _batches(len(data), epochs, generator):
            optimiser.zero_grad()
            for part in [chosen] if whole else [[index] for index in chosen]:
                got = as_tuple(student(*_stacked([data[index] for index in part])))
                want = [torch.cat(values) for values in zip(*(answers[index] for index in part), strict=True)]
                pairs = zip(got, want, spread, strict=True)
                loss = sum((((g - w) / s).square().mean() for g, w, s in pairs), torch.zeros(()))
                (loss * len(part) / len(chosen)).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()

    def rewrite(module: fx.GraphModule) -> int:
        found = layers(module)
        for layer in found:
            values = bound(layer.node)
            weight = tensors[str(values["weight"].target)].detach()
            bias = weight.new_zeros(len(weight)) if values["bias"] is None else tensors[str(values["bias"].target)]
            set_weights(module, layer.node, weight, bias.detach())
        return len(found)

    return edit(program, "finetune", rewrite)


def _trained(student: fx.GraphModule, program: Program) -> dict[str, Tensor]:
    """Weights and biases of the layers in the student, as leaves of their own, by name."""
    names = [
        str(part.target)
        for layer in layers(program.module)
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


def _takes_batches(program: Program, data: Sequence[Arrays]) -> bool:
    """Whether the graph gives for two stacked calls what it gives for each: shapes in it may say otherwise."""
    pair = [data[0], data[-1]]
    try:
        stacked = program(*_stacked(pair))
    except (RuntimeError, ValueError):
        return False
    single = [torch.cat(values) for values in zip(*outputs(program, pair), strict=True)]
    same = zip(stacked, single, strict=True)
    return all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in same)


def _stacked(calls: Sequence[Arrays]) -> list[Tensor]:
    return [torch.cat([torch.from_numpy(array) for array in arrays]) for arrays in zip(*calls, strict=True)]


def _batches(count: int, epochs: int, generator: torch.Generator) -> Iterator[list[int]]:
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator).tolist()
        yield from (order[start : start + BATCH] for start in range(0, count, BATCH))
