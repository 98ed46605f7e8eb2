"""The recurrent cell of DARTS, for series and text: a baseline for ``recurrent_cell``.

Liu, Simonyan and Yang, DARTS: Differentiable Architecture Search, 2019 (arXiv 1806.09055). Every node has one input;
the product of two states is only in the highway that each node is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from hnas.ops.cell import ACTIVATIONS, Blend, Step, initialise
from hnas.ops.highway import Highway, HighwayRecurrent
from hnas.space import Arch, Choice, Shape, Space

_PARTS = ("a", "f")


def darts_recurrent(
    features: int = 3,
    outputs: int = 3,
    window: int = 32,
    widths: Sequence[int] = (8, 16, 24),
    nodes: int = 8,
    activations: Sequence[str] = tuple(ACTIVATIONS),
    norm: bool = False,
) -> Space:
    """Return the space of recurrent networks of one cell of DARTS.

    features: numbers of a row of the input.
    outputs: numbers of a row of the output.
    window: rows of an example; a network reads any number of rows.
    widths: possible widths of the state.
    nodes: number of nodes.
    activations: possible activations of a node.
    norm: whether a mixture normalises every state by the moments of the batch, as the search of DARTS does (False).
        Members never do, so their weights cannot be those of the mixture: train what the search derives alone.

    The choices of node i are ``nodes.i.a.op`` (its input, s0 to si) and ``nodes.i.f.op`` (the activation). All options
    of a node share its two matrices.

    Differences from DARTS:

    1. A candidate has the product of two weights, one of its input and one of its activation, each a softmax. In DARTS
       the activations of each pair of states have a softmax of their own, with a "none" that no derived cell has.
    2. A row is read by the first highway. DARTS embeds it first, and shares the embedding with the readout.
    3. The state is kept within [-10, 10], and matrices begin orthogonal or Xavier-uniform. No dropout.

    Raises:
        ValueError: an activation is unknown, or there is no node.
    """
    arguments = {name: list(v) if isinstance(v, list | tuple) else v for name, v in locals().items()}
    if unknown := [name for name in activations if name not in ACTIVATIONS]:
        raise ValueError(f"no {unknown[0]!r} in a node of a recurrent cell; known: {', '.join(ACTIVATIONS)}")
    if nodes < 1:
        raise ValueError(f"nodes is {nodes}; a cell has 1 or more")
    choices = {"width": Choice(tuple(widths))}
    for i in range(nodes):
        choices[f"nodes.{i}.a.op"] = Choice(tuple(f"s{k}" for k in range(i + 1)))
        choices[f"nodes.{i}.f.op"] = Choice(tuple(activations))

    def network(arch: Mapping[str, Any]) -> nn.Module:
        chosen = [[arch[f"nodes.{i}.{part}.op"] for part in _PARTS] for i in range(nodes)]
        soft = any(isinstance(option, tuple) for options in chosen for option in options)
        made = [Highway(arch["width"], *map(Blend.of, options)) for options in chosen]
        return HighwayRecurrent(features, outputs, arch["width"], made, norm=norm and soft)

    def union() -> nn.Module:
        return network({name: choice.options[-1] for name, choice in choices.items()})

    def example(_: Arch) -> tuple[Shape, ...]:
        return ((window, features),)

    def deployed(net: nn.Module) -> tuple[nn.Module, tuple[Shape, ...]]:
        assert isinstance(net, HighwayRecurrent)
        return Step(net), ((features,), (net.width,))

    return Space("darts_recurrent", arguments, choices, network, union, example, initialise, deployed=deployed)
