"""Frequencies of the shared draws, relaxed archs, divided slots, and predicted complexity."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from random import Random

import pytest
import torch
from torch import Tensor

from hnas import spaces
from hnas.sampling import complexity
from hnas.sampling import draws as paths
from hnas.space import Arch, Space
from hnas.strategies import channel_split, complexity_aware
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.training.loop import Schedule, train
from hnas.training.step import SubnetPath
from tests.hnas import tiny

SPACE = tiny.space()
DIVIDED = tiny.space(divisions=("convnext+mbconv", "attention+fusedconv"))


def filled(space: Space) -> Supernet:
    """Return a supernet in which no branch has zero output."""
    supernet, generator = Supernet(space), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in supernet.union.named_parameters():
            if name.endswith("out.weight"):
                parameter.copy_(1 + 0.1 * torch.randn(parameter.shape, generator=generator))
    return supernet


def branch_output(supernet: Supernet, arch: Arch, slot: str, x: Tensor) -> Tensor:
    net = supernet.space.build(arch).get_submodule(slot).train()
    view = supernet.view(arch)
    weights = {name.removeprefix(f"{slot}."): w for name, w in view.items() if name.startswith(f"{slot}.")}
    with torch.no_grad():
        output: Tensor = torch.func.functional_call(net, weights, (x,))
    return output


# --- the sampler ------------------------------------------------------------------------------------------------------


def test_weighted_orders_are_draws_without_replacement():
    logits, rng, n = [0.0, 1.0, -0.5], Random(0), 6000
    p = torch.tensor(logits, dtype=torch.float64).softmax(0).tolist()
    seen = Counter(tuple(paths.draw_order((0, 1, 2), rng, logits)[:2]) for _ in range(n))
    for (i, j), count in seen.items():
        assert count / n == pytest.approx(p[i] * p[j] / (1 - p[i]), abs=0.025)
    assert len(seen) == 6


def test_exclusive_members_repeat_a_type_only_where_they_must():
    for seed in range(8):
        for k in (0, 1, 3, 5, 7):
            members = paths.draw_exclusive(SPACE, Random(seed), k)
            assert len(members) == k
            for slot in SPACE.slots:
                taken = [arch[f"{slot}.op"] for arch in members if f"{slot}.op" in arch]
                assert all(arch in SPACE for arch in members)
                if len(taken) == k:
                    assert len(set(taken)) == min(k, len(paths.slot_types(SPACE, slot)))


def test_sizes_come_from_the_size_sampler_alone():
    (member,) = paths.draw_exclusive(SPACE, Random(0), 1, size=paths.take_smallest)
    assert all(member[n] == SPACE.choices[n].options[0] for n in member if not n.endswith(".op"))
    likely = {slot: [0.0] * (len(paths.slot_types(SPACE, slot)) - 1) + [50.0] for slot in SPACE.slots}
    (member,) = paths.draw_exclusive(SPACE, Random(0), 1, likely, lambda name, choice, rng: choice.options[-1])
    assert member == SPACE.largest


def test_a_relaxed_arch_has_the_sizes_it_is_given_and_the_largest_elsewhere():
    slot = next(s for s in SPACE.slots if f"{s}.op" in SPACE.smallest)
    arch = paths.relax(SPACE, SPACE.smallest, {s: paths.slot_types(SPACE, s) for s in SPACE.slots})
    assert arch["resolution"] == SPACE.smallest["resolution"]
    assert set(arch) <= set(SPACE.choices)
    added = {n: arch[n] for n in arch if n.startswith(f"{slot}.") and n not in (*SPACE.smallest, f"{slot}.op")}
    assert added.items() <= {name: choice.options[-1] for name, choice in SPACE.choices.items()}.items()
    unreached = [s for s in SPACE.slots if f"{s}.op" not in SPACE.smallest]
    assert unreached
    assert not any(name.startswith(tuple(f"{s}." for s in unreached)) for name in arch)


def test_a_relaxed_arch_does_not_depend_on_the_order_of_its_types():
    types = {slot: paths.slot_types(SPACE, slot) for slot in SPACE.slots}
    backwards = {slot: kinds[::-1] for slot, kinds in types.items()}
    assert paths.relax(SPACE, SPACE.smallest, backwards) == paths.relax(SPACE, SPACE.smallest, types)
    assert paths.relax(SPACE, SPACE.largest, {}) == SPACE.largest


def test_bad_input_of_the_sampler_is_one_line():
    slot = SPACE.slots[0]
    with pytest.raises(ValueError, match="there are no logits for"):
        paths.draw_exclusive(SPACE, Random(0), 2, {slot: [0.0] * len(paths.slot_types(SPACE, slot))})
    with pytest.raises(ValueError, match="2 logits for 3 types"):
        paths.draw_order(("a", "b", "c"), Random(0), [0.0, 1.0])
    with pytest.raises(ValueError, match=r"'pool' is not a type of .*; known: "):
        paths.relax(SPACE, SPACE.largest, {slot: ("pool",)})
    with pytest.raises(ValueError, match="no type is left for"):
        paths.keep_types(SPACE, {slot: ()})


# --- divided slots ----------------------------------------------------------------------------------------------------


def test_the_shipped_space_and_its_record_are_as_they_were():
    assert "divisions" not in SPACE.to_json()["arguments"]
    assert spaces.restore(SPACE.to_json()).choices == SPACE.choices
    assert DIVIDED.largest == SPACE.largest
    assert DIVIDED.smallest == SPACE.smallest
    assert set(SPACE.choices) == set(DIVIDED.choices)


def test_each_part_of_a_divided_slot_is_a_slice_of_the_pure_type():
    """Half of the channels at expansion 2 are, channel for channel, those of the whole type at expansion 1."""
    supernet = filled(DIVIDED)
    slot, kind_a, kind_b = "stages.1.blocks.1", "convnext", "mbconv"
    largest = DIVIDED.largest
    divided = DIVIDED.changed(largest, f"{slot}.op", f"{kind_a}+{kind_b}")
    for kind in (kind_a, kind_b):
        divided = DIVIDED.changed(divided, f"{slot}.{kind}.expansion", 2)
        divided = DIVIDED.changed(divided, f"{slot}.{kind}.kernel", 5)
    x = torch.randn(2, 24, 6, 6, generator=torch.Generator().manual_seed(1))
    mixed = branch_output(supernet, divided, slot, x)
    assert mixed.shape == x.shape
    for kind, part in ((kind_a, slice(0, 8)), (kind_b, slice(8, 24))):
        pure = DIVIDED.changed(largest, f"{slot}.op", kind)
        pure = DIVIDED.changed(DIVIDED.changed(pure, f"{slot}.{kind}.expansion", 1), f"{slot}.{kind}.kernel", 5)
        whole = branch_output(supernet, pure, slot, x)
        torch.testing.assert_close(mixed[:, part] - x[:, part], whole[:, part] - x[:, part])


def test_a_divided_member_is_extracted_bit_for_bit():
    supernet, task = Supernet(DIVIDED), tiny.task()
    train(supernet, task, channel_split.pick, Schedule(((4, 0.05),)))
    arch = channel_split.pick(DIVIDED, Random(0))[-2].arch
    study = Study(supernet, task)
    net = supernet.extract(arch, study.calibrate(arch))
    (shape,) = DIVIDED.example(arch)
    x = torch.randn(2, *shape)
    assert torch.equal(net(x), supernet(arch, x, stats=study.calibrate(arch)))


def test_training_a_part_leaves_the_other_channels_alone():
    supernet = filled(DIVIDED)
    slot = "stages.1.blocks.1"
    arch = DIVIDED.changed(DIVIDED.largest, f"{slot}.op", "convnext+mbconv")
    before = supernet.union.get_submodule(slot).mbconv.project.weight.detach().clone()
    train(supernet, tiny.task(), lambda *_: (SubnetPath(arch),), Schedule(((2, 0.05),)))
    after = supernet.union.get_submodule(slot).mbconv.project.weight.detach()
    assert torch.equal(before[:8], after[:8])
    assert not torch.equal(before[8:], after[8:])


@pytest.mark.parametrize("text", ["mbconv", "mbconv+mbconv", "mbconv+identity", "mbconv+pool", ""])
def test_a_division_that_is_none_is_one_line(text):
    with pytest.raises(ValueError, match=r"does not divide a slot; join different types by '\+', of att") as caught:
        tiny.space(divisions=(text,))
    assert "\n" not in str(caught.value)


# --- complexity -------------------------------------------------------------------------------------------------------


def test_predicted_complexity_follows_the_count(monkeypatch):
    monkeypatch.setattr(complexity, "SAMPLES", 24)
    model = complexity.fitted_model(SPACE)
    rng = Random("others")
    members = [SPACE.sample(rng) for _ in range(8)]
    counts = torch.tensor([[complexity.count_macs(SPACE, a), model(a)] for a in members], dtype=torch.float64).log()
    assert torch.corrcoef(counts.T)[0, 1] > 0.8
    assert model(SPACE.smallest) < model(SPACE.largest)
    assert (model.bank(SPACE.smallest, 5), model.bank(SPACE.largest, 5)) == (0, 4)


def test_the_walk_through_complexity_visits_every_bank_without_a_jump():
    for banks, sweeps in ((1, 1), (3, 2), (5, 8)):
        n = 2 * banks * sweeps
        walk = [complexity_aware.bank_of_sweep(k / n, banks, sweeps) for k in range(n)]
        assert set(walk) == set(range(banks))
        assert all(abs(a - b) <= 1 for a, b in pairwise(walk))
