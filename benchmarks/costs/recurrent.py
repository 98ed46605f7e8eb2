"""Measure how fast a search step of a recurrent cell is: ``python -m hnas.benchmarks.costs.recurrent``.

A search step here is one forward and backward pass of a mixture of all options, with gradients of weights and logits.
Four ways are interleaved on one batch, in one thread, by the processor time of this process:

1. ``edges``: DARTS' cell by its definition, a loop over the edges of every node and over the activations of every edge.
2. ``published``: the loop of DARTS' published code, one matrix product a node, and a loop over activations.
3. ``darts_recurrent``: the same cell as a space of hnas.
4. ``recurrent_cell``: two-input nodes of the same number and width, which compute another function.

Outputs and gradients of 1 to 3 must agree before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from time import process_time

import numpy as np
import torch
from torch import Tensor

from hnas import spaces
from hnas.benchmarks.cli import count
from hnas.export.proof.statistics import ratio_interval
from hnas.memory import reuse_memory
from hnas.ops.cell import ACTIVATIONS, LIMIT
from hnas.report import print_lines
from hnas.sampling.draws import branch_gates, new_logits, relax, slot_types
from hnas.supernet import Supernet

_FEATURES = 3
_WARM = 2  # rounds that are not timed
_APART = 1e-4  # largest relative difference of outputs or gradients
_OURS = ("darts_recurrent", "recurrent_cell")
_LOOPS = ("edges", "published")


@dataclass(frozen=True)
class StepSizes:
    """The sizes of a search step.

    width: of the state.
    nodes: of the cell.
    batch: sequences of a step.
    window: rows of a sequence.
    """

    width: int = 16
    nodes: int = 8
    batch: int = 32
    window: int = 32


class _Mixture:
    """A mixture of all options of a space: the outputs on a batch, by the space or by a loop.

    sizes: of the cell; the largest width of the space.
    """

    def __init__(self, space: str, sizes: StepSizes) -> None:
        wanted = sizes.nodes if space == "darts_recurrent" else [sizes.nodes]
        made = spaces.load(space)(
            features=_FEATURES, outputs=1, window=sizes.window, widths=[sizes.width], nodes=wanted
        )
        self.sizes = sizes
        self.supernet = Supernet(made)
        self.arch = relax(made, made.largest, {slot: slot_types(made, slot) for slot in made.slots}, single=True)
        self.logits = new_logits(made)
        for slot, logits in self.logits.items():
            torch.nn.init.normal_(logits, generator=torch.Generator().manual_seed(len(slot) + len(logits)))
        self.named = dict(self.supernet.union.named_parameters())

    @property
    def trained(self) -> list[Tensor]:
        """Return weights and logits."""
        return [*self.named.values(), *self.logits.values()]

    def outputs(self, x: Tensor) -> Tensor:
        """Return the outputs [N, T, 1] of the space."""
        shares = {slot: torch.softmax(logits, 0) for slot, logits in self.logits.items()}
        found: Tensor = self.supernet(self.arch, x, gates=branch_gates(self.supernet.space, self.arch, shares))
        return found

    def looped(self, x: Tensor, node: Callable[[Sequence[Tensor], Tensor, Tensor], Tensor]) -> Tensor:
        """Return the outputs [N, T, 1] of DARTS' cell, computed node by node.

        node: (earlier states, matrix of the node, weights [states, activations]) -> the state of the node.
        """
        count, width = self.sizes.nodes, self.sizes.width
        pairs = {name: self._pair(name) for name in ("embed", "recur", *(f"nodes.{i}" for i in range(count)))}
        alphas = [self._alpha(i) for i in range(count)]
        first, h, outputs = torch.cat([pairs["embed"], pairs["recur"]]), x.new_zeros(len(x), width), []
        for row in x.unbind(1):
            c, z = (torch.cat([row, h], 1) @ first).chunk(2, -1)
            states = [h + c.sigmoid() * (z.tanh() - h)]
            for i, alpha in enumerate(alphas):
                states.append(node(states, pairs[f"nodes.{i}"], alpha))
            h = torch.stack(states[1:]).mean(0).clamp(-LIMIT, LIMIT)
            outputs.append(h)
        return torch.stack(outputs, 1) @ self.named["readout.weight"].T + self.named["readout.bias"]

    def _pair(self, name: str) -> Tensor:
        return torch.cat([self.named[f"{name}.{part}.weight"] for part in ("gate", "value")]).T

    def _alpha(self, i: int) -> Tensor:
        a, f = (torch.softmax(self.logits[f"nodes.{i}.{part}"], 0) for part in "af")
        return a[:, None] * f


def by_edges(states: Sequence[Tensor], matrix: Tensor, alpha: Tensor) -> Tensor:
    """Return a node of DARTS' cell, one edge and one activation after another."""
    found = torch.zeros_like(states[0])
    for j, state in enumerate(states):
        c, z = (state @ matrix).chunk(2, -1)
        c = c.sigmoid()
        for k, activation in enumerate(ACTIVATIONS.values()):
            found = found + alpha[j, k] * (state + c * (activation(z) - state))
    return found


def by_activations(states: Sequence[Tensor], matrix: Tensor, alpha: Tensor) -> Tensor:
    """Return a node of DARTS' cell as in its published code: all edges at once, one activation after another."""
    together, width = torch.stack(list(states)), states[0].shape[-1]
    c, z = (together.flatten(0, 1) @ matrix).view(len(states), -1, 2 * width).chunk(2, -1)
    c, found = c.sigmoid(), torch.zeros_like(states[0])
    for k, activation in enumerate(ACTIVATIONS.values()):
        unweighted = together + c * (activation(z) - together)
        found = found + torch.sum(alpha[:, k, None, None] * unweighted, 0)
    return found


def measure_steps(sizes: StepSizes, rounds: int) -> dict[str, list[float]]:
    """Return way -> CPU seconds of its step in every round.

    Raises:
        RuntimeError: two ways to compute DARTS' cell do not agree.
    """
    fused, two_input = (_Mixture(space, sizes) for space in _OURS)
    x = torch.randn(sizes.batch, sizes.window, _FEATURES, generator=torch.Generator().manual_seed(0))
    ways: Mapping[str, tuple[_Mixture, Callable[[], Tensor]]] = {
        "edges": (fused, lambda: fused.looped(x, by_edges)),
        "published": (fused, lambda: fused.looped(x, by_activations)),
        "darts_recurrent": (fused, lambda: fused.outputs(x)),
        "recurrent_cell": (two_input, lambda: two_input.outputs(x)),
    }
    for name in _LOOPS:
        _compare(name, *(_results(*ways[each]) for each in (name, "darts_recurrent")))
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + _WARM):
        for name in Random(turn).sample(sorted(ways), len(ways)):
            begun = process_time()
            torch.autograd.backward(ways[name][1]().square().mean())
            times[name].append(process_time() - begun)
            for each in ways[name][0].trained:
                each.grad = None
    return {name: values[_WARM:] for name, values in times.items()}


def _results(mixture: _Mixture, outputs: Callable[[], Tensor]) -> list[Tensor]:
    """Return the outputs and the gradients of a step."""
    found = outputs()
    return [found.detach(), *torch.autograd.grad(found.square().mean(), mixture.trained)]


def _compare(name: str, theirs: Sequence[Tensor], ours: Sequence[Tensor]) -> None:
    """Raise RuntimeError unless the results of two ways agree."""
    for a, b in zip(theirs, ours, strict=True):
        if not float((a - b).abs().max()) <= _APART * float(a.abs().max()) + 1e-6:
            raise RuntimeError(f"the loop {name!r} and the space do not compute the same; nothing was timed")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print how many times as fast the steps of both spaces are as those of both loops."""
    parser = argparse.ArgumentParser("python -m hnas.benchmarks.costs.recurrent", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    for name, value in StepSizes.__dataclass_fields__.items():
        parser.add_argument(f"--{name}", type=count, default=value.default, metavar="N", help="(default %(default)s)")
    parser.add_argument("--rounds", type=count, default=20, metavar="N", help="of timed steps (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    options = parser.parse_args(arguments)
    sizes = StepSizes(options.width, options.nodes, options.batch, options.window)
    torch.set_num_threads(1)
    reuse_memory()
    times = measure_steps(sizes, options.rounds)
    found = {
        f"{ours}, {loop}": ratio_interval(np.log(np.divide(times[loop], times[ours])).reshape(1, -1))
        for ours in _OURS
        for loop in _LOOPS
    }
    if options.json:
        print(json.dumps({"milliseconds": _medians(times), "times as fast": found}, indent=1))  # noqa: T201 - the output
        return 0
    print_lines([f"{name:<16} {value:8.1f} ms of CPU a step (median)" for name, value in _medians(times).items()])
    print_lines([f"{name}: {r:.2f}x [{low:.2f}, {high:.2f}] as fast" for name, (r, low, high) in found.items()])
    return 0


def _medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: round(1e3 * float(np.median(values)), 2) for name, values in times.items()}


if __name__ == "__main__":
    sys.exit(main())
