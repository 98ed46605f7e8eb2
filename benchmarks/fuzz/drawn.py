"""Draw random networks with unusual sizes, strides, groups, pads and several outputs: ``draw_network(rng)``.

Every network is valid: an operator that does not fit its input is drawn again.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import torch
from torch import Tensor, nn

from hnas.benchmarks.fuzz.steps import draw_step

_MOST = 48  # channels, and pixels of a side, that a step may make


class _RandomNet(nn.Module):
    """A sequence of steps, each from [N, C, H, W] to [N, C, H, W], with one or two output layers.

    The output of a step may be joined with an earlier value.

    steps: the modules.
    joins: index of a step -> (index of the earlier value, -1 for the input; name of the join).
    ends: the output layers.
    gate: a linear layer that scales the value in the middle by a second input [N, features], or None.
    """

    def __init__(self, steps: list[nn.Module], joins: dict[int, tuple[int, str]], ends: nn.ModuleList) -> None:
        super().__init__()
        self.steps, self.joins, self.ends = nn.ModuleList(steps), joins, ends
        self.gate: nn.Linear | None = None

    def forward(self, x: Tensor, facts: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
        """Return the value of every end."""
        values = [x]
        for index, step in enumerate(self.steps):
            y = step(values[-1])
            if index in self.joins:
                other, how = self.joins[index]
                y = _JOINS[how](y, values[other + 1])
            if self.gate is not None and facts is not None and index == len(self.steps) // 2:
                y = y * torch.sigmoid(self.gate(facts))[:, : y.shape[1], None, None]
            values.append(y)
        results = tuple(end(values[-1 - 2 * index]) for index, end in enumerate(self.ends))
        return results[0] if len(results) == 1 else results


_JOINS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: b - a,
    "mul": lambda a, b: a * b,
    "cat": lambda a, b: torch.cat((a, b), 1),
    "tac": lambda a, b: torch.cat((b, a, b), 1),
    "max": torch.maximum,
    "scaled": lambda a, b: torch.add(a, b, alpha=0.5),
}


class _End(nn.Module):
    """An output layer: class scores from the mean of the map, from all its values, or for each pixel."""

    def __init__(self, kind: str, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        _, channels, height, width = shape
        self.kind = kind
        self.layer: nn.Module = nn.Linear(channels if kind == "mean" else channels * height * width, classes)
        if kind == "map":
            self.layer = nn.Conv2d(channels, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, classes], or [N, classes, H, W]."""
        y: Tensor = self.layer(x if self.kind == "map" else x.mean((2, 3)) if self.kind == "mean" else x.flatten(1))
        return y


def draw_network(rng: Random) -> tuple[nn.Module, tuple[tuple[int, ...], ...]]:
    """Return a network with its own weights and moments, and the shapes of its inputs without the batch.

    The weights come from torch's own random numbers; seed them.
    """
    shape = (rng.choice((1, 3, 3, 4, 5, 8)), rng.randint(5, 20), rng.randint(5, 20))
    steps: list[nn.Module] = []
    joins: dict[int, tuple[int, str]] = {}
    values = [torch.randn(1, *shape)]
    length = rng.choice((1, 2, 2, 3, 3, 4, 5, 6, 8))
    while len(steps) < length:
        step = draw_step(rng, values[-1])
        try:
            y, joined = _apply(rng, step, values)
        except (RuntimeError, ValueError):  # the step does not fit this map
            continue
        if _is_usable(y):
            if joined is not None:
                joins[len(steps)] = joined
            steps.append(step)
            values.append(y)
    count = 2 if len(values) > 3 and rng.random() < 0.25 else 1
    ends = nn.ModuleList(
        _End(rng.choice(("mean", "mean", "flat", "map")), values[-1 - 2 * index].shape, rng.choice((2, 5, 10)))
        for index in range(count)
    )
    net = _RandomNet(steps, joins, ends)
    if rng.random() < 0.2:
        net.gate = nn.Linear(6, _MOST)
        return net.eval(), (shape, (6,))
    return net.eval(), (shape,)


def _apply(rng: Random, step: nn.Module, values: list[Tensor]) -> tuple[Tensor, tuple[int, str] | None]:
    """Return the value of a step on the last value, joined with an earlier value or not, and the join."""
    y = step.eval()(values[-1])
    joined = _draw_join(rng, y, values)
    if joined is not None:
        y = _JOINS[joined[1]](y, values[joined[0] + 1])
    return y, joined


def _is_usable(y: Tensor) -> bool:
    """Return whether a value is a small map of finite, moderate numbers."""
    fits = y.ndim == 4 and y.numel() and y.shape[1] <= _MOST and max(y.shape[2:]) <= _MOST
    return bool(fits and torch.isfinite(y).all() and y.abs().max() < 1e3)


def _draw_join(rng: Random, y: Tensor, values: list[Tensor]) -> tuple[int, str] | None:
    """Return an earlier value that fits the new one, and the name of a join; None in most steps. -1 is the input."""
    if rng.random() > 0.35:
        return None
    alike = [index - 1 for index, value in enumerate(values) if value.shape == y.shape]
    beside = [index - 1 for index, value in enumerate(values) if value.shape[2:] == y.shape[2:]]
    if alike and rng.random() < 0.7:
        return rng.choice(alike), rng.choice(("add", "add", "sub", "mul", "max", "scaled"))
    return (rng.choice(beside), rng.choice(("cat", "cat", "tac"))) if beside else None
