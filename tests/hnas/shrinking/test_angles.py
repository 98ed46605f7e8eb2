"""The additive angle equals its definition in a chain and in a graph, and finds operations that were not trained."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from random import Random

import numpy as np
import pytest
import torch
from torch import nn

from hnas import spaces
from hnas.shrinking import angles, children
from hnas.shrinking.angles import AngleBasis, AngleTable
from hnas.shrinking.evidence import angle
from hnas.shrinking.graph import PathGraph
from hnas.space import Arch, Choice, Space
from hnas.spaces import nasbench201
from hnas.study import Study
from hnas.supernet import Supernet
from tests.hnas import tiny
from tests.hnas.planted import BAD, digits, noise, one_line, planted, turned, worst

# --- children ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("balance", [None, "identity"])
def test_rows_are_members_and_members_are_rows(balance):
    space = tiny.space(depths=((1, 3), (2, 3)))
    rows = children.draw_rows(space, 60, np.random.default_rng(0), balance)
    archs = [children.member_of(space, row) for row in rows]
    assert all(arch in space for arch in archs)
    assert np.array_equal(children.rows_of(space, archs), rows)


def test_every_type_is_drawn_equally_often():
    rows = angles.sample_rows(digits(), 40, seed=1)
    for at in range(rows.shape[1]):
        assert np.bincount(rows[:, at]).tolist() == [40] * 5
    pairs = np.unique(rows[:, :2], axis=0, return_counts=True)[1]
    assert len(pairs) > 20, "slots are drawn independently"


def test_balance_draws_the_number_of_identities_uniformly():
    space = digits()
    rows = children.draw_rows(space, 4000, np.random.default_rng(0), "identity")
    counts = np.bincount((rows == 0).sum(1), minlength=5) / 4000
    assert counts == pytest.approx([0.2] * 5, abs=0.03)
    plain = children.draw_rows(space, 4000, np.random.default_rng(0))
    assert np.bincount((plain == 0).sum(1), minlength=5)[4] / 4000 < 0.02


# --- angle ------------------------------------------------------------------------------------------------------------


def laid_out(study: Study, arch: Arch, axes: int = 2, within: tuple[str, ...] = ("",)) -> float:
    """Return the angle by its definition, from all weights of the child, or from those below ``within``."""
    then, now = study.weights(arch, "initial"), study.weights(arch)
    now = {name: weight for name, weight in now.items() if name.startswith(within)}
    first, second = (
        torch.cat([weights[name].detach().double().flatten() for name in now if now[name].ndim >= axes])
        for weights in (then, now)
    )
    return float((first @ second / (first.norm() * second.norm())).clamp(-1, 1).arccos())


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("make", [tiny.space, digits, partial(tiny.space, depths=((1, 2), (1, 3)))])
def test_the_additive_form_is_the_angle_of_the_concatenation(make, axes):
    study = turned(make())
    archs = [study.supernet.space.sample(Random(seed)) for seed in range(8)]
    table = AngleTable(study, study.supernet.space, vectors=axes == 1)
    found = table.angles(children.rows_of(study.supernet.space, archs))
    assert found == pytest.approx([laid_out(study, arch, axes) for arch in archs], abs=1e-7)


@pytest.mark.parametrize("make", [tiny.space, digits])
def test_the_angle_of_slots_leaves_out_what_every_child_has(make):
    study = turned(make())
    space = study.supernet.space
    archs = [space.sample(Random(seed)) for seed in range(8)]
    found = angle.angles_of(study, archs, form="slots")
    within = tuple(f"{slot}." for slot in space.slots)
    assert found == pytest.approx([laid_out(study, arch, within=within) for arch in archs], abs=1e-7)
    assert not np.allclose(found, angle.angles_of(study, archs), atol=1e-4)


def test_the_additive_form_follows_copies_and_another_reference():
    study = planted(digits(), *BAD)
    study.supernet.split("blocks.2.conv3", "blocks.1.op", ("conv3", "dw5"))
    noise(study.supernet.union.get_submodule("copies"), 1.0, seed=5)
    archs = [study.supernet.space.sample(Random(seed)) for seed in range(12)]
    archs += [Arch({**arch, "blocks.2.op": "conv3", "blocks.1.op": "dw5"}) for arch in archs[:3]]
    found = angle.angles_of(study, archs)
    assert found == pytest.approx([laid_out(study, arch) for arch in archs], abs=1e-7)
    snapshot = study.snapshot()
    assert angle.angles_of(study, archs, basis=AngleBasis(snapshot)) == pytest.approx([0.0] * len(archs), abs=1e-7)
    noise(study.supernet.union, 0.5, seed=7)
    assert min(angle.angles_of(study, archs, basis=AngleBasis(snapshot))) > 0.1


CELLS = 2


def cell_graph(space: Space) -> PathGraph:
    """Return the graph of the published angle of NAS-Bench-201."""
    cells, width = space.arguments["cells"], space.arguments["width"]
    channels = cells * sum(width * 2**stage for stage in range(nasbench201.STAGES))
    pools = {kind: (kernel, channels) for kind, kernel in nasbench201.POOLS.items()}
    return PathGraph(nasbench201.EDGES, none=nasbench201.NONE, pools=pools)


def unbroken_edges(arch: Arch) -> list[str]:
    """Return the edges of all unbroken paths of a cell, path by path."""
    paths = [[f"edges.{i}_{j}" for i, j in pairwise(path)] for path in ((0, 3), (0, 2, 3), (0, 1, 2, 3), (0, 1, 3))]
    return [slot for path in paths if all(arch[f"{edge}.op"] != "none" for edge in path) for slot in path]


def laid_out_by_paths(study: Study, arch: Arch) -> float:
    """Return the angle by its definition: the weights of each unbroken path of each cell, and all others."""
    then, now = study.weights(arch, "initial"), study.weights(arch)
    pieces = [(then[name], w) for name, w in now.items() if w.ndim > 1 and not name.startswith("edges.")]
    for cell in range(3 * CELLS):
        for slot in unbroken_edges(arch):
            kind = arch[f"{slot}.op"]
            if kind == "avg_pool_3x3":
                pieces += [(torch.full((8 * 2 ** (cell // CELLS), 9), 1 / 9),) * 2]
            own = f"{slot}.{kind}.{cell}."
            pieces += [(then[name], w) for name, w in now.items() if name.startswith(own) and w.ndim > 1]
    first, second = (torch.cat([piece[k].detach().double().flatten() for piece in pieces]) for k in (0, 1))
    return float((first @ second / (first.norm() * second.norm())).clamp(-1, 1).arccos())


def test_in_a_graph_an_edge_counts_as_often_as_paths_run_through_it():
    space = spaces.load("nasbench201")(cells=CELLS)
    study = turned(space)
    assert sorted(len(path) for path in cell_graph(space).paths()) == [1, 2, 2, 3]
    archs = [space.sample(Random(seed)) for seed in range(10)]
    found = angle.angles_of(study, archs, basis=AngleBasis(graph=cell_graph(space)))
    # The pooling constant is float32 in the one and exact in the other.
    assert found == pytest.approx([laid_out_by_paths(study, arch) for arch in archs], abs=1e-6)
    assert not np.allclose(found, angle.angles_of(study, archs), atol=1e-4), "as a chain it would be another number"


def test_a_broken_path_takes_its_edges_along():
    space = spaces.load("nasbench201")()
    graph = cell_graph(space)
    convs = {f"{slot}.op": "nor_conv_3x3" for slot in space.slots}
    only = Arch({**convs, "edges.0_1.op": "none", "edges.0_2.op": "none"})
    counts = graph.multiplicities(space, space.slots, children.rows_of(space, [Arch(convs), only]))
    by_slot = dict(zip(space.slots, counts.T.tolist(), strict=True))
    assert by_slot["edges.0_1"] == [2, 0]
    assert by_slot["edges.1_2"] == [1, 0]
    assert by_slot["edges.2_3"] == [2, 0]
    assert by_slot["edges.0_3"] == [1, 1]


@pytest.mark.parametrize("form", angle.FORMS)
def test_the_angle_finds_what_has_not_learnt(form):
    study = planted(digits(), *BAD)
    assert worst(angle.scores(study, study.supernet.space, samples=50, form=form)) == BAD


def test_raw_angles_condemn_a_slow_type_and_standardised_ones_do_not():
    space = digits()
    supernet = Supernet(space)
    for slot in space.slots:
        for option in space.choices[f"{slot}.op"].options[1:]:
            share = 0.05 if option == "conv3" else 0.6
            noise(supernet.union.get_submodule(f"{slot}.{option}"), share / (3 if (f"{slot}.op", option) == BAD else 1))
    study = Study(supernet, tiny.task())
    block = angle.scores(study, space, samples=50, form="block")
    raw = angle.scores(study, space, samples=200)
    slow = {(f"{slot}.op", "conv3") for slot in space.slots}
    assert set(sorted(block, key=block.__getitem__)[:4]) == slow
    assert worst(raw) in slow
    assert worst(angle.scores(study, space, samples=50, form="standardised")) == BAD
    here, elsewhere = (Arch({**space.smallest, name: BAD[1]}) for name in (BAD[0], "blocks.1.op"))
    assert np.diff(angle.angles_of(study, [here, elsewhere], form="standardised")) > 0


def test_a_type_that_is_open_in_one_slot_is_held_against_the_slots_that_are_decided():
    study = planted(digits(), *BAD)
    space = digits()
    for slot in space.slots:
        if f"{slot}.op" != BAD[0]:
            for option in space.choices[f"{slot}.op"].options:
                space = space.without(f"{slot}.op", option) if option != BAD[1] else space
    found = angle.scores(study, space, samples=50, form="standardised")
    assert {name for name, _ in found} == {BAD[0]}
    assert worst(found) == BAD
    assert found[BAD] < -1


def test_standardised_values_have_no_mean_and_one_deviation_a_type():
    values = {
        ("a.op", "x"): 1.0,
        ("b.op", "x"): 3.0,
        ("a.op", "y"): 5.0,
        ("b.op", "y"): 5.0,
        ("a.op", "z"): float("nan"),
    }
    assert angles.standardise(values) == {
        ("a.op", "x"): -1.0,
        ("b.op", "x"): 1.0,
        ("a.op", "y"): 0.0,
        ("b.op", "y"): 0.0,
        ("a.op", "z"): 0.0,
    }


def test_scores_are_means_over_the_children_that_contain_the_operation():
    study = turned(digits())
    space = study.supernet.space
    every = [
        Arch({f"{slot}.op": o for slot, o in zip(space.slots, row, strict=True)}) for row in np.ndindex(0, 0, 0, 0)
    ]
    assert not every
    found = angle.scores(study, space, samples=400, seed=3)
    rows = angles.sample_rows(space, 400, seed=3)
    values = angle.angles_of(study, [children.member_of(space, row) for row in rows])
    for (name, option), score in found.items():
        at = children.column_of(space, name)
        having = rows[:, at] == space.choices[name].options.index(option)
        assert score == pytest.approx(values[having].mean(), abs=1e-12)


def test_few_members_are_built_for_many_children(monkeypatch):
    study = turned(digits())
    built = []
    whole = study.supernet._skeleton
    monkeypatch.setattr(study.supernet, "_skeleton", lambda arch: built.append(arch) or whole(arch))
    angle.scores(study, study.supernet.space, samples=1000)
    assert len(set(built)) <= 5 + angles.CHECKED, "one for each type, and the one that is checked"


def test_blocks_that_hang_on_another_slot_are_refused():
    def build(arch: Arch) -> nn.Module:
        net = nn.Module()
        for slot in ("a", "b"):
            wide = 2 if arch["a.op"] == "x" else 4
            net.add_module(slot, nn.ModuleDict({arch[f"{slot}.op"]: nn.Linear(3, wide)}))
        return net

    def union() -> nn.Module:
        net = nn.Module()
        for slot in ("a", "b"):
            net.add_module(slot, nn.ModuleDict({kind: nn.Linear(3, 4) for kind in ("x", "y")}))
        return net

    choices = {f"{slot}.op": Choice(("x", "y")) for slot in ("a", "b")}
    space = Space("entangled", {}, choices, build, union, lambda _: ((3,),), lambda _: None)
    supernet = Supernet(space)
    noise(supernet.union, 0.5)
    study = Study(supernet, tiny.task())
    table = AngleTable(study, space)
    rows = children.rows_of(space, [Arch({"a.op": "x", "b.op": "x"}), Arch({"a.op": "y", "b.op": "x"})])
    table.angles(rows[:1])
    table._checked = False
    with pytest.raises(ValueError, match="depend on a choice in another slot") as caught:
        table.angles(rows[1:])
    assert one_line(caught)
