"""Describe an operator as a tiny network with seeded inputs, and collect operators in ``OPERATORS``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hnas.export.graph.fusion import fuse
from hnas.export.graph.program import Program, capture

Draw = Callable[[torch.Generator], Tensor]


class _Function(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


class First(nn.Module):
    """The first result of a module, such as the sequence of a recurrent layer."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Any:
        return self.module(*inputs)[0]


@dataclass(frozen=True)
class Operator:
    """A network of one operator.

    family: the row of the table in the documentation.
    build: makes the module, or is the function itself.
    inputs: each draws one input.
    native: False where the writer has no operator, and names it.
    """

    family: str
    build: Callable[..., Any]
    inputs: tuple[Draw, ...]
    native: bool = True

    def program(self, seed: int = 0) -> Program:
        """Return the captured and fused program, with random weights and statistics."""
        return fuse(capture(self.module(seed), self.values(seed)))

    def module(self, seed: int = 0) -> nn.Module:
        """Return the module in eval mode."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            made = self.build() if isinstance(self.build, _Layer) else _Function(self.build)
        generator = torch.Generator().manual_seed(seed)
        for name, value in made.state_dict().items():
            if value.is_floating_point():
                drawn = torch.randn(value.shape, generator=generator) * 0.3
                value.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else drawn)
        return made.eval()

    def values(self, seed: int) -> tuple[Tensor, ...]:
        """Return inputs; every seed has its own."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(draw(generator) for draw in self.inputs)


class _Layer:
    """Make a module each time."""

    def __init__(self, create: Callable[[], nn.Module]) -> None:
        self.create = create

    def __call__(self) -> nn.Module:
        return self.create()


def normal(*shape: int) -> Draw:
    """Draw from a normal distribution."""
    return lambda generator: torch.randn(shape, generator=generator)


def positive(*shape: int) -> Draw:
    """Draw between 0.2 and 2.2."""
    return lambda generator: torch.rand(shape, generator=generator) * 2 + 0.2


def small(*shape: int) -> Draw:
    """Draw between -0.9 and 0.9."""
    return lambda generator: torch.rand(shape, generator=generator) * 1.8 - 0.9


def whole(high: int, *shape: int) -> Draw:
    """Draw int64 numbers from 0 on."""
    return lambda generator: torch.randint(high, shape, generator=generator)


def truth(*shape: int) -> Draw:
    """Draw conditions."""
    return lambda generator: torch.rand(shape, generator=generator) > 0.4


IMAGE, WIDE, LINE, ROWS = normal(1, 4, 9, 10), normal(2, 8, 6, 8), normal(1, 4, 12), normal(3, 5)
TOKENS, VOLUME = normal(2, 6, 16), normal(1, 3, 4, 6, 8)
OPERATORS: dict[str, Operator] = {}


def functions(family: str, *inputs: Draw, native: bool = True, **functions: Callable[..., Any]) -> None:
    """Add functions of tensors by name. The name of a row in the table of the documentation is ``family``."""
    for name, function in functions.items():
        assert name not in OPERATORS, name
        OPERATORS[name] = Operator(family, function, inputs, native)


def layers(family: str, *inputs: Draw, native: bool = True, **layers: Callable[[], nn.Module]) -> None:
    """Add modules by name; each is made anew for a program."""
    functions(family, *inputs, native=native, **{name: _Layer(create) for name, create in layers.items()})


class ToItself(nn.Module):
    """Attention of tokens to themselves."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Any:
        return self.module(x, x, x)
