"""The recurrent cell: LSTM and GRU are members, soft choices compute what their definition says."""

from __future__ import annotations

from functools import partial
from random import Random

import pytest
import torch
from torch import nn

from hnas import recipes, spaces, strategies, tasks
from hnas.ops.cell import ACTIVATIONS, LIMIT, Recurrent
from hnas.recipes.run import RunOptions, run_recipe
from hnas.sampling.draws import relax, slot_types
from hnas.space import Arch
from hnas.study import Study
from hnas.supernet import Stats, Supernet
from hnas.training.loop import Schedule

FEATURES, HIDDEN = 3, 5


def member(width: int, nodes: list[tuple[str, str, str, str, str]]) -> Recurrent:
    """Return the network of a cell whose nodes are given as (a, f, b, g, join), with all weights zero."""
    space = spaces.load("recurrent_cell")(features=FEATURES, outputs=HIDDEN, widths=[width], nodes=[len(nodes)])
    chosen = {"width": width, "nodes": len(nodes)}
    for i, node in enumerate(nodes):
        chosen |= {f"nodes.{i}.{part}.op": kind for part, kind in zip(["a", "f", "b", "g", "join"], node, strict=True)}
    net = space.build(space.arch(chosen))
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    return net


def test_a_gru_is_a_member():
    """The width is that of the state and of the linearly embedded input beside it: s0 = [h, x]."""
    torch.manual_seed(0)
    gru, width = nn.GRU(FEATURES, HIDDEN, batch_first=True), HIDDEN + FEATURES
    net = member(
        width,
        [
            ("s0", "sigmoid", "s0", "linear", "product"),  # s1 = r o (U_n h + b)
            ("s0", "linear", "s1", "linear", "add"),  # s2 = W_n x + s1
            ("s0", "sigmoid", "s2", "tanh", "product"),  # s3 = (1 - z) o tanh(s2), 1 - sigmoid(a) = sigmoid(-a)
            ("s0", "sigmoid", "s0", "linear", "product"),  # s4 = z o h
        ],
    )
    h, x = slice(0, HIDDEN), slice(HIDDEN, width)
    wr, wz, wn = gru.weight_ih_l0.detach().chunk(3)
    ur, uz, un = gru.weight_hh_l0.detach().chunk(3)
    br, bz, bn = gru.bias_ih_l0.detach().chunk(3)
    cr, cz, cn = gru.bias_hh_l0.detach().chunk(3)
    with torch.no_grad():
        net.embed.weight[x] = torch.eye(FEATURES)
        net.recur.weight[h, h] = torch.eye(HIDDEN)
        first, second, third, fourth = net.nodes
        gates = ((first.left, wr, ur, br + cr, 1), (third.left, wz, uz, bz + cz, -1), (fourth.left, wz, uz, bz + cz, 1))
        for side, w, u, bias, sign in gates:
            side.weight[h, x], side.weight[h, h], side.bias[h] = sign * w, sign * u, sign * bias
        first.right.weight[h, h], first.right.bias[h] = un, cn
        second.left.weight[h, x], second.left.bias[h] = wn, bn
        second.right.weight[h, h] = torch.eye(HIDDEN)
        third.right.weight[h, h] = torch.eye(HIDDEN)
        fourth.right.weight[h, h] = torch.eye(HIDDEN)
        net.weights.copy_(torch.tensor([0.0, 0.0, 1.0, 1.0]))
        net.readout.weight[:, h] = torch.eye(HIDDEN)
        sequence = torch.randn(4, 12, FEATURES)
        torch.testing.assert_close(net(sequence), gru(sequence)[0], rtol=1e-5, atol=1e-5)


def test_an_lstm_is_a_member():
    """The state is [h, c], twice as wide as the LSTM's output, and the linearly embedded input is beside it."""
    torch.manual_seed(0)
    lstm, width = nn.LSTM(FEATURES, HIDDEN, batch_first=True), 2 * HIDDEN + FEATURES
    net = member(
        width,
        [
            ("s0", "sigmoid", "s0", "linear", "product"),  # s1 = f o c
            ("s0", "sigmoid", "s0", "tanh", "product"),  # s2 = i o g
            ("s1", "linear", "s2", "linear", "add"),  # s3 = c'
            ("s0", "sigmoid", "s3", "tanh", "product"),  # s4 = o o tanh(c')
        ],
    )
    h, c, x = slice(0, HIDDEN), slice(HIDDEN, 2 * HIDDEN), slice(2 * HIDDEN, width)
    wi, wf, wg, wo = lstm.weight_ih_l0.detach().chunk(4)
    ui, uf, ug, uo = lstm.weight_hh_l0.detach().chunk(4)
    bi, bf, bg, bo = (lstm.bias_ih_l0 + lstm.bias_hh_l0).detach().chunk(4)
    eye = torch.eye(HIDDEN)
    with torch.no_grad():
        net.embed.weight[x] = torch.eye(FEATURES)
        net.recur.weight[h, h] = net.recur.weight[c, c] = eye
        first, second, third, fourth = net.nodes
        rows = ((first.left, c, wf, uf, bf), (second.left, c, wi, ui, bi), (second.right, c, wg, ug, bg))
        for side, at, w, u, bias in (*rows, (fourth.left, h, wo, uo, bo)):
            side.weight[at, x], side.weight[at, h], side.bias[at] = w, u, bias
        first.right.weight[c, c] = third.left.weight[c, c] = third.right.weight[c, c] = eye
        fourth.right.weight[h, c] = eye
        net.weights.copy_(torch.tensor([0.0, 0.0, 1.0, 1.0]))
        net.readout.weight[:, h] = eye
        sequence = torch.randn(4, 12, FEATURES)
        torch.testing.assert_close(net(sequence), lstm(sequence)[0], rtol=1e-5, atol=1e-5)


def test_soft_choices_are_the_weighted_sums_of_their_definition():
    space = spaces.load("recurrent_cell")(features=FEATURES, outputs=2, window=6, widths=[8], nodes=[2])
    supernet, rng = Supernet(space), torch.Generator().manual_seed(0)
    types = {slot: slot_types(space, slot) for slot in space.slots}
    types["nodes.0.f"], types["nodes.0.g"] = ("relu", "tanh"), ("tanh", "sigmoid")  # sides with other options
    arch = relax(space, space.largest, types, single=True)
    gates = {slot: torch.rand(len(arch[f"{slot}.op"]), generator=rng) for slot in space.slots}
    x = torch.randn(3, 6, FEATURES, generator=rng)
    union, h, outputs = supernet.union, torch.zeros(3, 8), []

    def blend(slot, candidates):
        return sum(g * candidates[name] for g, name in zip(gates[slot], arch[f"{slot}.op"], strict=True))

    for t in range(6):
        states = {"s0": union.embed(x[:, t]) + union.recur(h)}
        for i, node in enumerate(union.nodes):
            left = node.left(blend(f"nodes.{i}.a", states))
            right = node.right(blend(f"nodes.{i}.b", states))
            u = blend(f"nodes.{i}.f", {name: act(left) for name, act in ACTIVATIONS.items()})
            v = blend(f"nodes.{i}.g", {name: act(right) for name, act in ACTIVATIONS.items()})
            states[f"s{i + 1}"] = blend(f"nodes.{i}.join", {"add": u + v, "product": u * v})
        h = (union.weights[0] * states["s1"] + union.weights[1] * states["s2"]).clamp(-LIMIT, LIMIT)
        outputs.append(union.readout(h))
    torch.testing.assert_close(supernet(arch, x, gates=gates), torch.stack(outputs, 1), rtol=1e-5, atol=1e-5)


def test_a_step_after_the_other_is_the_whole_sequence():
    space = spaces.load("recurrent_cell")(features=FEATURES)
    arch = space.sample(Random(2))
    net, x = Supernet(space).extract(arch, Stats({}, 0)), torch.randn(2, 9, FEATURES)
    h, found = torch.zeros(2, net.width), []
    for row in x.unbind(1):
        y, h = net.step(row, h)
        found.append(y)
    torch.testing.assert_close(torch.stack(found, 1), net(x), rtol=1e-5, atol=1e-6)


def test_random_members_stay_finite_over_long_sequences():
    space = spaces.load("recurrent_cell")(features=FEATURES)
    supernet = Supernet(space)
    for seed in range(12):
        assert bool(supernet(space.sample(Random(seed)), 3 * torch.randn(2, 200, FEATURES)).isfinite().all())


def test_an_unknown_part_is_one_line():
    with pytest.raises(ValueError, match="no 'cube' in a node of a recurrent cell; known: linear, relu, sigmoid, tanh"):
        spaces.load("recurrent_cell")(activations=["cube"])


@pytest.mark.parametrize("name", ["darts", "gdas", "fairnas", "hybrid_union"])
def test_strategies_that_know_no_layer_train_it(name):
    space = spaces.load("recurrent_cell")(widths=[8], nodes=[1, 2], window=4)
    strategy = strategies.load(name)
    extra = strategy.extra(space) if hasattr(strategy, "extra") else {}
    pick = partial(strategy.pick, extra=extra) if extra else strategy.pick
    for path in pick(space, Random(0), 0.5):
        assert Supernet(space)(path.arch, torch.randn(2, 4, 3), gates=path.gates).shape == (2, 4, 3)


@pytest.mark.slow
def test_a_recipe_trains_a_series_that_beats_persistence(tmp_path):
    recipe = recipes.load("lorenz")
    record = run_recipe(recipe, None, tmp_path / "out", RunOptions(epochs=50, alone=Arch(_one_node())))
    errors = {name: -value for name, value in (record["accuracy"] | record["baselines"]).items()}
    assert errors["largest"] < 0.2 * errors["persistence"]
    assert record["score"]["name"] == "mean squared error"
    assert sum("of as many weights" in name for name in errors) == 2


def _one_node() -> dict:
    kinds = {"a": "s0", "f": "tanh", "b": "s0", "g": "linear", "join": "add"}
    return {"width": 16, "nodes": 1, **{f"nodes.0.{part}.op": kind for part, kind in kinds.items()}}


@pytest.mark.slow
def test_where_a_product_is_necessary_the_cell_with_a_product_wins():
    """Gated recall: target[t] = signal[t - 2] * gate[t]. Equal numbers of weights, steps and seeds."""
    options = {"source": "gated_recall", "targets": ("target",), "horizon": 0, "window": 12, "burn": 3, "length": 1500}
    errors = {}
    for name, kinds in (("product", ("linear", "linear", "product")), ("add", ("tanh", "sigmoid", "add"))):
        task = tasks.load("series").open_task(None, batch_size=32, **options)
        space = spaces.load("recurrent_cell")(**task.space_arguments, widths=[8], nodes=[2])
        chosen = {"width": 8, "nodes": 2}
        for i, own in enumerate((("linear", "linear", "add"), kinds)):
            parts = dict(zip(["f", "g", "join"], own, strict=True)) | {"a": "s0", "b": "s0"}
            chosen |= {f"nodes.{i}.{part}.op": kind for part, kind in parts.items()}
        arch = space.arch(chosen)
        study = Study(Supernet(space.alone(arch)), task)
        study.train(strategies.load("alone").pick, Schedule(((400, 0.1),), decay=0.0, clip=1.0))
        errors[name] = -study.accuracy(arch, "test")
    assert errors["product"] < 0.3 * errors["add"], errors
