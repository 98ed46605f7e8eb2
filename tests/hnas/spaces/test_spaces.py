"""The spaces of published methods: NAS-Bench-201, the mobile space of PAD-NAS, the tabular digits."""

from __future__ import annotations

import csv
import gzip
import os
from pathlib import Path
from random import Random

import pytest
import torch

from hnas.cost.flops import macs, parameters
from hnas.shrinking.graph import PathGraph
from hnas.spaces import nasbench201 as nb
from hnas.spaces import padnas_mobile as pad
from hnas.spaces import tabular_digits as tabular
from hnas.study import Study
from hnas.supernet import Supernet
from tests.hnas import tiny

STRING = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|none~2|"


def cells(**changes):
    return nb.nasbench201(**{"classes": 4, "resolution": 12, "width": 4, "cells": 2, **changes})


def mobile(**changes):
    return pad.padnas_mobile(
        **{"classes": 4, "channels": 1, "resolution": 12, "stem_stride": 1, "width": 0.1, **changes}
    )


def digits():
    return tabular.tabular_digits(classes=4, resolution=12, width=4)


SPACES = [cells, mobile, digits]


def images(space, n=3, seed=0):
    return torch.randn(n, *space.example(space.largest)[0], generator=torch.Generator().manual_seed(seed))


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", SPACES)
def test_an_extracted_net_equals_the_subnet_bit_for_bit(make):
    space = make()
    study = Study(Supernet(space, 0), tiny.task())
    for arch in (space.largest, space.sample(Random(1))):
        stats = study.calibrate(arch)
        x = images(space)
        assert torch.equal(study.supernet.extract(arch, stats)(x), study.supernet(arch, x, stats=stats))


@pytest.mark.parametrize("make", SPACES)
def test_slots_are_where_types_live(make):
    """Every weight of one type of a slot is at ``<slot>.<type>``."""
    space = make()
    names = {name for name, _ in Supernet(space, 0).union.named_parameters()}
    for slot in space.slots:
        kinds = space.choices[f"{slot}.op"].options
        assert {name.removeprefix(f"{slot}.").split(".")[0] for name in names if name.startswith(f"{slot}.")} <= {
            *kinds
        }
    assert len(space.slots) == len(space.choices)


@pytest.mark.parametrize("make", SPACES)
def test_a_one_hot_gate_is_the_type_it_opens(make):
    """A relaxed slot whose gates select one type computes the same as the member with that type."""
    space = make()
    supernet = Supernet(space, 0)
    slot = space.slots[-2] if make is mobile else space.slots[1]
    kinds = space.choices[f"{slot}.op"].options
    branches = [kind for kind in kinds if kind != "identity"]
    base, x = space.sample(Random(2)), images(space)
    relaxed = type(base)({**base, f"{slot}.op": kinds})
    for k, kind in enumerate(branches):
        gates = torch.eye(len(branches))[k].requires_grad_()
        y = supernet(relaxed, x, gates={slot: gates})
        torch.testing.assert_close(y, supernet(space.changed(base, f"{slot}.op", kind), x), rtol=1e-4, atol=1e-5)
    y.square().sum().backward()
    assert gates.grad is not None
    assert gates.grad.abs().sum() > 0 or make is mobile  # residual branches of the mobile space start at zero


# --- NAS-Bench-201 ----------------------------------------------------------------------------------------------------


def test_there_are_15625_cells_and_six_edges_in_the_published_order():
    space = nb.nasbench201()
    assert space.size == 15_625
    assert space.slots == tuple(nb.EDGES)
    assert list(nb.EDGES.values()) == [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]


def test_a_published_string_goes_there_and_back():
    space = cells()
    arch = nb.from_string(STRING)
    assert arch in space
    assert arch["edges.0_1.op"] == "nor_conv_3x3"
    assert arch["edges.1_2.op"] == "skip_connect"
    assert arch["edges.2_3.op"] == "none"
    assert nb.to_string(arch) == STRING
    assert all(nb.from_string(nb.to_string(a)) == a for a in (space.sample(Random(seed)) for seed in range(50)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        STRING[:-1],
        STRING.replace("none~2", "none~1"),
        STRING.replace("none", "zero"),
        STRING.replace("+", ""),
        STRING + "+|none~0|none~1|none~2|none~3|",
    ],
)
def test_a_string_that_is_no_cell_is_refused_in_one_line(text):
    with pytest.raises(ValueError, match=r"is not a cell; expected \|TYPE~0\|\+.* nor_conv_3x3$"):
        nb.from_string(text)


def test_every_cell_takes_the_choice_with_weights_of_its_own():
    space = cells()
    view = Supernet(space, 0).view(nb.from_string(STRING))
    copies = [view[f"edges.0_1.nor_conv_3x3.{cell}.conv.weight"] for cell in range(6)]
    assert [tuple(w.shape[:2]) for w in copies] == [(4, 4)] * 2 + [(8, 8)] * 2 + [(16, 16)] * 2
    assert not torch.equal(copies[0], copies[1])
    assert not any(name.startswith("edges.2_3") for name in view)


def test_the_gates_of_an_edge_reach_every_cell():
    """A gate of zero gives the weights of its type no gradient, in all cells."""
    space = cells()
    supernet = Supernet(space, 0)
    relaxed = type(space.largest)({**space.largest, "edges.0_3.op": ("avg_pool_3x3", "nor_conv_3x3")})
    used = [f"edges.0_3.nor_conv_3x3.{cell}.conv.weight" for cell in range(6)]
    for opened in (0.0, 0.7):
        supernet.union.zero_grad()
        supernet(relaxed, images(space), gates={"edges.0_3": torch.tensor([1.0, opened])}).square().sum().backward()
        weights = dict(supernet.union.named_parameters())
        assert [bool(weights[name].grad.any()) for name in used] == [opened > 0] * 6


def test_a_cell_without_a_path_sees_nothing_and_one_of_skips_adds_up():
    space = cells()
    supernet = Supernet(space, 0)
    blind = supernet(space.smallest, images(space))
    assert torch.equal(blind, blind[:1].expand_as(blind))
    assert not torch.equal(blind, supernet(nb.from_string(STRING), images(space)))
    # All six edges as skips: node 3 = x + x + 2 x.
    skips = space.arch({f"{slot}.op": "skip_connect" for slot in space.slots})
    x = torch.randn(1, 4, 12, 12)
    assert torch.allclose(space.build(skips)._cell(x, 0), 4 * x)


def test_the_macro_is_the_published_one():
    """Count the parameters of the largest network of the benchmark (5 cells in a stage, 16 channels) by hand."""
    space = nb.nasbench201(channels=3, resolution=32, width=16, cells=5)
    with torch.device("meta"):
        net = space.build(space.largest)
    conv = sum(9 * c * c + 2 * c for c in (16, 32, 64)) * 6 * 5
    stem, head = 27 * 16 + 2 * 16, 2 * 64 + 64 * 10 + 10
    blocks = sum(9 * a * b + 2 * b + 9 * b * b + 2 * b + a * b for a, b in ((16, 32), (32, 64)))
    assert parameters(net) == conv + stem + head + blocks


def test_the_graph_of_the_angle_has_the_four_published_paths():
    space = cells()
    graph = PathGraph(nb.EDGES, none=nb.NONE, pools=nb.pools(space))
    numbers = [[nb.EDGES[slot] for slot in path] for path in graph.paths()]
    assert sorted(numbers) == [[(0, 1), (1, 2), (2, 3)], [(0, 1), (1, 3)], [(0, 2), (2, 3)], [(0, 3)]]
    assert graph.pools == {"avg_pool_3x3": (3, 2 * (4 + 8 + 16))}


@pytest.mark.parametrize("changes", [{"resolution": 30}, {"resolution": 2}, {"width": 0}, {"cells": 0}])
def test_impossible_cells_are_refused_in_one_line(changes):
    with pytest.raises(ValueError, match=r"got \d+"):
        cells(**changes)


def test_the_published_accuracies_join():
    folder = os.environ.get("HNAS_TABLES")
    if not folder:
        pytest.skip("HNAS_TABLES names no folder with nb201_accuracy.csv.gz (NATS-Bench, topology space)")
    with gzip.open(Path(folder) / "nb201_accuracy.csv.gz", "rt", newline="") as stream:
        rows = [row["arch_str"] for row in csv.DictReader(stream)]
    archs = {nb.from_string(text) for text in rows}
    assert len(rows) == len(archs) == nb.nasbench201().size
    assert {nb.to_string(arch) for arch in archs} == set(rows)


# --- PAD-NAS' mobile space --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("large", "size"), [(False, 3 * 6**6 * 7**15), (True, 3 * 18**6 * 19**15)])
@pytest.mark.parametrize("width", [1.0, 0.25])
def test_the_space_has_as_many_architectures_as_the_paper_says(large, size, width):
    space = pad.padnas_mobile(large=large, width=width)
    assert space.size == size
    assert len(space.slots) == 22


def test_identity_is_illegal_where_a_stage_begins():
    for name, choice in mobile(large=True).choices.items():
        assert ("identity" in choice.options) is (".blocks.0." not in name)


def test_the_first_layer_has_no_expanding_convolution():
    names = {name for name, _ in Supernet(mobile(), 0).union.named_parameters()}
    assert any(name.startswith("stages.0.blocks.0.k3e1.depthwise.") for name in names)
    assert not any(name.startswith("stages.0.") and ".expand." in name for name in names)
    assert "stages.1.blocks.0.k3e3.expand.conv.weight" in names


@pytest.mark.parametrize(
    ("large", "channels"), [(False, (16, 32, 40, 80, 96, 192, 320)), (True, (16, 24, 40, 80, 96, 192, 320))]
)
def test_channels_and_maps_of_the_stages_are_the_papers(large, channels):
    space = pad.padnas_mobile(large=large)
    seen = []
    with torch.device("meta"):
        net = space.build(space.smallest)
        for stage in net.stages:
            stage.register_forward_hook(lambda _, __, y: seen.append(tuple(y.shape[1:])))
        assert net(torch.empty(2, *space.example(space.smallest)[0])).shape == (2, 1000)
    assert seen == [(c, side, side) for c, side in zip(channels, (112, 56, 28, 14, 14, 7, 7), strict=True)]
    assert net.head.conv.out_channels == 1280
    assert net.stem.conv.out_channels == (16 if large else 32)


def test_the_published_networks_fit_between_the_ends():
    """The paper's architectures have 271 to 444 million multiply-accumulates."""
    space = pad.padnas_mobile()
    ends = []
    for arch in (space.smallest, space.largest):
        with torch.device("meta"):
            ends.append(macs(space.build(arch), *space.example(arch)))
    assert ends[0] < 271e6 < 444e6 < ends[1]


# --- the tabular digits -----------------------------------------------------------------------------------------------


def test_identity_everywhere_is_a_network_of_pixels():
    """Without a spatial operation a network does not depend on the positions of pixels."""
    space = tabular.tabular_digits()
    assert space.size == 625
    net = Supernet(space, 0)
    x = images(space)
    shuffled = x.flatten(2)[:, :, torch.randperm(64, generator=torch.Generator().manual_seed(0))].view_as(x)
    for types, blind in ((["identity"] * 4, True), (["conv1"] * 4, True), (["avg3", *["identity"] * 3], False)):
        arch = tabular.arch_of(types)
        assert arch in space
        assert torch.allclose(net(arch, x), net(arch, shuffled), atol=1e-4) is blind


def test_every_type_has_its_own_cost():
    space = tabular.tabular_digits()
    found = []
    for kind in tabular.TYPES:
        arch = tabular.arch_of([kind] * 4)
        with torch.device("meta"):
            found.append(macs(space.build(arch), *space.example(arch)))
    assert found == sorted(found)
    assert len(set(found)) == 4  # conv1 and avg3 differ by the pooling, which has no multiplications
