"""The step of a recurrent cell for devices computes what the cell computes, with few operators."""

from __future__ import annotations

from random import Random

import pytest
import torch
from torch import nn

from hnas import spaces
from hnas.ops import folded
from hnas.ops.cell import Recurrent
from hnas.ops.folded import FoldedStep
from hnas.supernet import Stats, Supernet

FEATURES = 3


def cell(width: int = 8, features: int = FEATURES, nodes: int = 4, seed: int = 0) -> Recurrent:
    """Return a random member, whose every weight and bias counts."""
    space = spaces.load("recurrent_cell")(features=features, outputs=2, widths=[width], nodes=[nodes])
    net = Supernet(space, seed).extract(space.sample(Random(seed)), Stats({}, 0))
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=rng))
    return net


def follow(net: Recurrent, step: nn.Module, rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the outputs of a step after the other, and those of the whole sequence."""
    x = torch.randn(2, rows, net.embed.in_features)
    h, found = torch.zeros(2, net.width), []
    with torch.no_grad():
        for row in x.unbind(1):
            y, h = step(row, h)
            found.append(y)
        return torch.stack(found, 1), net(x)


@pytest.mark.parametrize("width", [8, 40])
@pytest.mark.parametrize("features", [3, 60])
def test_a_step_after_the_other_is_the_whole_sequence(width, features):
    """Wide and narrow, with s0 computed and without. Products amplify rounding, so three rows are read."""
    computed = set()
    for seed in range(12):
        net = cell(width, features, 1 + seed % 4, seed)
        step = FoldedStep(net)
        computed.add(bool(step.layers) and getattr(step.layers[0], "activation", "") == "linear")
        torch.testing.assert_close(*follow(net, step), rtol=1e-3, atol=1e-4)
    assert computed == {(8, 3): {False, True}, (40, 3): {False}}.get((width, features), {True})


@pytest.mark.parametrize("planted", ["bias", "weights"])
def test_a_wrong_step_is_seen(planted):
    net = cell()
    step = FoldedStep(net)
    with torch.no_grad():
        net.get_parameter({"bias": "nodes.3.left.bias", "weights": "weights"}[planted]).add_(0.01)
    found, wanted = follow(net, step)
    assert not torch.allclose(found, wanted, rtol=1e-3, atol=1e-4)


def of_kinds(*kinds: tuple[str, str, str, str, str], width: int = 24) -> FoldedStep:
    """Return the step of a member whose nodes are given as (a, f, b, g, join)."""
    space = spaces.load("recurrent_cell")(features=FEATURES, widths=[width], nodes=[len(kinds)])
    chosen = {"width": width, "nodes": len(kinds)}
    for i, node in enumerate(kinds):
        chosen |= {f"nodes.{i}.{part}.op": kind for part, kind in zip(["a", "f", "b", "g", "join"], node, strict=True)}
    return FoldedStep(Supernet(space).extract(space.arch(chosen), Stats({}, 0)))


def products(step: FoldedStep) -> int:
    """Return the number of matrix products of a step."""
    return sum(isinstance(module, nn.Linear) for module in step.modules())


def test_nodes_of_one_kind_are_one_layer():
    gate = ("s0", "sigmoid", "s0", "tanh", "product")
    assert [products(of_kinds(*[gate] * n)) for n in (1, 2, 3)] == [4, 4, 4], "two sides, the sum, the readout"
    assert products(of_kinds(gate, ("s0", "tanh", "s0", "tanh", "add"))) == 5, "and two equal sides in one"
    assert products(of_kinds(gate, ("s0", "sigmoid", "s1", "tanh", "product"))) == 6, "the first node is read"


def test_what_is_linear_is_one_matrix():
    """Planted in the first version: a matrix for the sides, and another for the output weights."""
    line = ("s0", "linear", "s0", "linear", "add")
    assert [products(of_kinds(*[line] * n)) for n in (1, 3)] == [2, 2]


def test_a_wide_step_multiplies_by_factors_and_not_by_diagonal_matrices(monkeypatch):
    gate = ("s0", "sigmoid", "s0", "tanh", "product")
    wide = of_kinds(gate, gate, width=40)
    assert (products(wide), [tuple(each.shape) for each in wide.total.factors]) == (3, [(1, 80)])
    monkeypatch.setattr(folded, "_NARROW", 40)
    assert products(of_kinds(gate, gate, width=40)) == 4
