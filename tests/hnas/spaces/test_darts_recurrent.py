"""The recurrent cell of DARTS: members and mixtures compute what its definition says, edge by edge."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from random import Random

import pytest
import torch

from hnas import recipes, spaces, strategies, tasks
from hnas.deployment.sequence import step_figures
from hnas.export import compile as compile_artifact
from hnas.growth.loop import GrowthRules, grow
from hnas.ops.cell import ACTIVATIONS, LIMIT
from hnas.recipes.run import RunOptions, run_recipe
from hnas.sampling.draws import relax, slot_types
from hnas.study import Study
from hnas.supernet import Stats, Supernet
from hnas.training.folder import load_supernet
from hnas.training.loop import Schedule

FEATURES, WIDTH, NODES = 3, 6, 4


def space(**changes):
    return spaces.load("darts_recurrent")(
        **{"features": FEATURES, "outputs": 2, "window": 7, "widths": [4, WIDTH], "nodes": NODES, **changes}
    )


def highway(state, both, activation):
    c, z = both.chunk(2, -1)
    return state + torch.sigmoid(c) * (activation(z) - state)


def reference(weights, width, weight_of, x):
    """Return the outputs of a cell, one edge and one activation after another.

    weights: name -> tensor.
    weight_of: (node, earlier state, activation) -> the weight of that candidate.
    """
    both = {
        name: torch.cat([weights[f"{name}.{part}.weight"] for part in ("gate", "value")])
        for name in ("embed", "recur", *(f"nodes.{i}" for i in range(NODES)))
    }
    h, outputs = torch.zeros(len(x), width), []
    for row in x.unbind(1):
        states = [highway(h, row @ both["embed"].T + h @ both["recur"].T, torch.tanh)]
        for i in range(NODES):
            found = torch.zeros(len(x), width)
            for j, state in enumerate(states):
                for kind, activation in ACTIVATIONS.items():
                    if (weight := weight_of(i, j, kind)) is not None:
                        found = found + weight * highway(state, state @ both[f"nodes.{i}"].T, activation)
            states.append(found)
        h = torch.stack(states[1:]).mean(0).clamp(-LIMIT, LIMIT)
        outputs.append(h @ weights["readout.weight"].T + weights["readout.bias"])
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("seed", range(3))
def test_a_member_is_the_cell_of_its_definition(seed):
    whole = space()
    arch, x = whole.sample(Random(seed)), torch.randn(5, 7, FEATURES)
    net = Supernet(whole, seed).extract(arch, Stats({}, 0))

    def chosen(i, j, kind):
        return 1.0 if (arch[f"nodes.{i}.a.op"], arch[f"nodes.{i}.f.op"]) == (f"s{j}", kind) else None

    expected = reference(dict(net.named_parameters()), arch["width"], chosen, x)
    torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(Supernet(whole, seed)(arch, x), net(x), rtol=0, atol=0)


def test_a_mixture_is_the_sum_over_edges_and_activations():
    whole, rng = space(), torch.Generator().manual_seed(0)
    types = {slot: slot_types(whole, slot) for slot in whole.slots}
    types["nodes.2.a"], types["nodes.2.f"] = ("s0", "s2"), ("relu", "tanh")  # closed: s1, linear, sigmoid
    arch = relax(whole, whole.largest, types, single=True)
    gates = {slot: torch.rand(len(arch[f"{slot}.op"]), generator=rng) for slot in whole.slots}
    supernet, x = Supernet(whole), torch.randn(5, 7, FEATURES, generator=rng)

    def weight_of(i, j, kind):
        a, f = (dict(zip(arch[f"nodes.{i}.{part}.op"], gates[f"nodes.{i}.{part}"], strict=True)) for part in "af")
        return a[f"s{j}"] * f[kind] if f"s{j}" in a and kind in f else None

    expected = reference(dict(supernet.union.named_parameters()), WIDTH, weight_of, x)
    found = supernet(arch, x, gates=gates)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    one_hot = {slot: torch.eye(len(gate))[-1] for slot, gate in gates.items()}
    member = whole.arch({**arch, **{f"{slot}.op": arch[f"{slot}.op"][-1] for slot in gates}})
    torch.testing.assert_close(supernet(arch, x, gates=one_hot), supernet(member, x), rtol=1e-5, atol=1e-6)


def test_only_a_mixture_is_normalised():
    whole = space(norm=True)
    supernet, x = Supernet(whole), torch.randn(6, 7, FEATURES)
    arch = relax(whole, whole.largest, {slot: slot_types(whole, slot) for slot in whole.slots})
    gates = {s: torch.full((len(arch[f"{s}.op"]),), 0.25) for s in whole.slots if isinstance(arch[f"{s}.op"], tuple)}
    outputs = [Supernet(space(norm=norm))(arch, x, gates=gates) for norm in (True, False)]
    assert not torch.allclose(*outputs, atol=1e-3)
    assert torch.equal(supernet(whole.largest, x), Supernet(space())(whole.largest, x))


def test_a_step_after_the_other_is_the_whole_sequence():
    whole, x = space(), torch.randn(2, 9, FEATURES)
    net = Supernet(whole).extract(whole.sample(Random(2)), Stats({}, 0))
    step, (_, state) = whole.deployed(net)
    h, found = torch.zeros(2, *state), []
    for row in x.unbind(1):
        y, h = step(row, h)
        found.append(y)
    torch.testing.assert_close(torch.stack(found, 1), net(x), rtol=1e-5, atol=1e-6)


def test_random_members_stay_finite_over_long_sequences():
    supernet = Supernet(space(nodes=8))
    for seed in range(6):
        assert bool(supernet(supernet.space.sample(Random(seed)), 3 * torch.randn(2, 200, FEATURES)).isfinite().all())


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"activations": ["cube"]}, "no 'cube' in a node"), ({"nodes": 0}, "nodes is 0; a cell has 1 or more")],
)
def test_an_impossible_cell_is_one_line(changes, message):
    with pytest.raises(ValueError, match=message):
        space(**changes)


@pytest.mark.parametrize("name", ["darts", "gdas", "msgdas", "spos", "hybrid_union"])
def test_strategies_that_know_no_layer_train_it(name):
    task = tasks.load("series").open_task(None, source="lorenz", length=400, window=7, burn=2, alpha=0.5, batch_size=4)
    whole = spaces.load("darts_recurrent")(**task.space_arguments, widths=[4], nodes=3, norm=name == "darts")
    strategy = strategies.load(name)
    extra = strategy.extra(whole) if hasattr(strategy, "extra") else {}
    pick = partial(strategy.pick, extra=extra) if extra else strategy.pick
    study = Study(Supernet(whole), task)
    study.train(pick, Schedule(((4, 0.1),)), extra=extra)
    if extra:
        assert any(bool(logits.abs().max() > 0) for logits in extra.values())


def test_it_grows_in_width_and_by_options_alone():
    task = tasks.load("series").open_task(None, source="lorenz", length=400, window=7, burn=2, batch_size=4)
    whole = spaces.load("darts_recurrent")(**task.space_arguments, widths=[4, 6, 8], nodes=3)
    log = []
    grown = grow(Study(Supernet(whole), task), GrowthRules(mode="alternate", stages=4), Schedule(((10, 0.1),)), log=log)
    assert grown.size == 1
    assert {proof["edit"]["edit"] for proof in log} <= {"open", "type"}
    assert log


@pytest.mark.slow
def test_a_recipe_trains_it_and_a_member_is_deployed_step_by_step(tmp_path):
    recipe = replace(
        recipes.load("lorenz"),
        space={"name": "darts_recurrent", "widths": [8], "nodes": 4},
        data={"task": "series", "source": "lorenz", "length": 240, "window": 10, "burn": 3, "horizon": 2},
        grow={},
    )
    run_recipe(recipe, None, tmp_path / "net", RunOptions(epochs=8))
    supernet, _ = load_supernet(tmp_path / "net")
    task = tasks.load("series").open_task(None, **{key: v for key, v in recipe.data.items() if key != "task"})
    net = supernet.extract(supernet.space.sample(Random(0)), Stats({}, 0))
    step, (_, state) = supernet.space.deployed(net)
    x, h = torch.randn(1, FEATURES), torch.randn(1, *state)
    artifact = compile_artifact(step, (x, h), device="onnxruntime-cpu", path=tmp_path / "step")
    assert step_figures(artifact, step, task, state).drift[200] < 1e-3
