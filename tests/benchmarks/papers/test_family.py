"""The studies of MSG-DAS: what a search costs, what it ends with, the saved activations, and the table of all cells."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="scikit-learn is not installed; pip install 'hnas[papers]'")

from hnas.benchmarks.papers import cells_table, family_plan, lone_table, sampler, truth
from hnas.benchmarks.papers.data import describe_images
from hnas.benchmarks.papers.searches import SearchSetting, searched
from hnas.cost.flops import macs, parameters
from hnas.strategies import msgdas
from hnas.supernet import Supernet
from hnas.tasks.digits import open_task as digits

CELLS = cells_table.TABLE
TINY = SearchSetting(
    data=describe_images(None, quick=True),
    space=CELLS.space,
    arguments=CELLS.arguments,
    strategy="msgdas",
    budget={"passes": 24},
    rate=0.1,
)


# --- the table of all cells -------------------------------------------------------------------------------------------


def test_cells_that_are_one_network_compute_the_same():
    """All edges have the same weights here, so that types may change places."""
    space = CELLS.whole
    merged = {types: CELLS.network_of(types) for types in CELLS.members()}
    assert len(set(merged.values())) == 70
    assert all(merged[network] == network for network in merged.values())
    supernet, x = Supernet(space, 0), torch.randn(4, 1, 8, 8)
    first = dict(supernet.union.named_parameters())
    for name, own in first.items():
        if name.startswith("edges."):
            own.data.copy_(first[name.replace("0_2", "0_1").replace("1_2", "0_1")].data)

    def outputs(types: Any) -> torch.Tensor:
        return supernet(lone_table.arch_of(space, types), x)

    with torch.no_grad():
        for types, network in merged.items():
            if types != network:
                assert torch.allclose(outputs(types), outputs(network), atol=1e-5), (types, network)


def test_every_cell_is_in_the_shipped_table_with_its_costs():
    table, space = truth.cells(), CELLS.whole
    assert len(table.archs) == space.size == 125
    assert table.accuracy.shape == table.search.shape == (125, 4)
    assert (table.latency_ms > 0).all()
    for k in range(0, 125, 31):
        arch = table.archs[k]
        with torch.device("meta"):
            net = space.build(arch)
        assert (parameters(net), macs(net, *space.example(arch))) == (table.params[k], table.macs[k])


def test_the_shipped_cells_differ_more_than_seeds_do():
    record = truth.cells_record()
    rows = record["archs"]
    assert record["space"] == CELLS.whole.to_json()
    assert record["task"]["digests"] == digits().to_json()["digests"]
    assert record["noise"] == lone_table.noise_of_table(rows)
    assert record["noise"]["ratio"] >= 4
    linked = [row for row in rows if cells_table.connected(row["types"])]
    assert len(linked) == 116
    assert lone_table.noise_of_table(linked)["ratio"] >= 1.3, "without the cells that let nothing through"


# --- searches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["darts", "pdarts", "spos"])
def test_a_search_spends_its_passes_and_says_what_it_ends_with(strategy):
    found = searched(None, 0, replace(TINY, strategy=strategy, budget={"passes": 60}))
    assert found["passes"] == pytest.approx(60, rel=0.3), "P-DARTS' passes depend on the types that it drops"
    assert CELLS.whole.arch(found["arch"]) in CELLS.whole
    assert found["skips"] == found["counts"].get("skip_connect", 0)
    assert sum(found["counts"].values()) == 3


def test_the_rate_of_alpha_reaches_the_search():
    ends = [searched(None, 0, replace(TINY, strategy="gdas", rate=rate))["logits"] for rate in (0.0, 0.1)]
    assert not any(any(row) for row in ends[0].values())
    assert any(any(row) for row in ends[1].values())


def test_drops_change_nothing_where_no_branch_is_an_identity():
    """So E3 runs on cells. Both searches draw the same paths."""
    plain = replace(TINY, space="tabular_digits", arguments={}, options={"drop": 0.0})
    off, on = (searched(None, 0, replace(plain, options=options)) for options in ({"drop": 0.0}, {"drop": 0.3}))
    assert off["logits"] == on["logits"]


@pytest.mark.parametrize("option", [{"guidance": True}, {"drop": 0.0}])
def test_a_search_without_a_part_takes_the_same_paths(option):
    """So that E3 and E4 compare pairs."""
    extra = msgdas.extra(CELLS.whole)
    both = [msgdas.pick(CELLS.whole, Random(4), 0.5, extra, **each) for each in ({}, option)]
    drawn = [[(path.arch, path.split) for path in step if path.trains] for step in both]
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 4


def test_a_derivation_leaves_a_type_out_and_takes_the_next_one():
    logits = {slot: [3.0, 1.0, 2.0, 0.0, 0.5] for slot in CELLS.whole.slots}
    every = family_plan._derived(CELLS.whole, logits, ())
    assert set(every.values()) == {"none"}
    assert set(family_plan._derived(CELLS.whole, logits, ("none",)).values()) == {"avg_pool_3x3"}


def test_seconds_that_were_not_measured_are_no_number():
    ends = family_plan._SearchEnds([0.9, 0.8], [], (10, 20, None))
    assert ends.row("random", 1.0)[-3:] == [10, 20, "-"]


# --- the sampler ------------------------------------------------------------------------------------------------------


def test_the_exact_gradients_of_all_ranks_add_up_to_nothing():
    logits, losses = np.random.default_rng(0).normal(size=(2, 4))
    found = sampler._exact_gradients(logits, losses)
    p = np.exp(logits) / np.exp(logits).sum()
    assert found[0] == pytest.approx(p * (losses - p @ losses)), "rank 1 is a plain draw"
    assert np.abs(np.sum(found, 0)).max() < 1e-12


def test_a_sampler_with_wrong_probabilities_is_seen(monkeypatch):
    setting = sampler._DrawSetting(data=TINY.data, draws=sampler._QUICK_DRAWS, taus=(1.0,))
    right = sampler.draws(None, 0, setting)
    assert sampler._largest_error(right) < sampler._QUICK_LIMIT
    assert right["repeated"] == 0
    assert right["formula"] < 1e-5
    real = sampler.draw_ranked
    more = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0])
    monkeypatch.setattr(
        sampler, "draw_ranked", lambda space, rng, extra: real(space, rng, {s: x + more for s, x in extra.items()})
    )
    assert sampler._largest_error(sampler.draws(None, 0, setting)) > sampler._QUICK_LIMIT
