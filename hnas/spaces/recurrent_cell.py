"""Recurrent cells of two-input nodes, for series and text. LSTM and GRU are members (tests set their weights).

Jie and Gao, Differentiable NAS with Morphism-based Transformable Backbone Architectures, 2021 (arXiv 2106.07211): the
recurrent backbone of DARTS has no product of two states; here every node has one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from hnas.ops.cell import ACTIVATIONS, JOINS, Blend, Node, Recurrent, initialise
from hnas.ops.folded import FoldedStep
from hnas.space import Arch, Choice, Shape, Space

_PARTS = ("a", "f", "b", "g", "join")


def recurrent_cell(
    features: int = 3,
    outputs: int = 3,
    window: int = 32,
    widths: Sequence[int] = (8, 16, 24),
    nodes: Sequence[int] = (1, 2, 3, 4),
    activations: Sequence[str] = tuple(ACTIVATIONS),
    joins: Sequence[str] = tuple(JOINS),
) -> Space:
    """Return the space of recurrent networks of one cell.

    features: numbers of a row of the input.
    outputs: numbers of a row of the output.
    window: rows of an example; a network reads any number of rows.
    widths: possible widths of the state.
    nodes: possible numbers of nodes.
    activations: possible activations of a side of a node.
    joins: how a node joins its sides: "add", "product".

    The choices of node i are ``nodes.i.a.op`` and ``nodes.i.b.op`` (its inputs, s0 to si), ``nodes.i.f.op`` and
    ``nodes.i.g.op`` (activations), ``nodes.i.join.op``. All options of a node share its two matrices.

    Raises:
        ValueError: an activation or a join is unknown.
    """
    arguments = {name: list(v) if isinstance(v, list | tuple) else v for name, v in locals().items()}
    for given, known in ((activations, ACTIVATIONS), (joins, JOINS)):
        if unknown := [name for name in given if name not in known]:
            raise ValueError(f"no {unknown[0]!r} in a node of a recurrent cell; known: {', '.join(known)}")
    choices = {"width": Choice(tuple(widths)), "nodes": Choice(tuple(nodes))}
    for i in range(max(nodes)):
        when = None if i < min(nodes) else ("nodes", tuple(count for count in nodes if count > i))
        states = tuple(f"s{k}" for k in range(i + 1))
        kinds = {"a": states, "b": states, "f": tuple(activations), "g": tuple(activations), "join": tuple(joins)}
        choices |= {f"nodes.{i}.{part}.op": Choice(kinds[part], when) for part in _PARTS}

    def network(arch: Mapping[str, Any]) -> nn.Module:
        chosen = [[arch[f"nodes.{i}.{part}.op"] for part in _PARTS] for i in range(arch["nodes"])]
        made = [Node(arch["width"], *map(Blend.of, options)) for options in chosen]
        return Recurrent(features, outputs, arch["width"], made)

    def union() -> nn.Module:
        return network({name: choice.options[-1] for name, choice in choices.items()})

    def example(_: Arch) -> tuple[Shape, ...]:
        return ((window, features),)

    def deployed(net: nn.Module) -> tuple[nn.Module, tuple[Shape, ...]]:
        assert isinstance(net, Recurrent)
        return FoldedStep(net), ((features,), (net.width,))

    return Space("recurrent_cell", arguments, choices, network, union, example, initialise, deployed=deployed)
