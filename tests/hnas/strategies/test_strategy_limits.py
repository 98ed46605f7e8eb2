"""Test what the steps of a strategy must not do."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
import torch

from hnas import strategies
from hnas.sampling import complexity
from hnas.sampling import draws as paths
from hnas.strategies import hybrid_progressive, hybrid_union
from hnas.supernet import Supernet
from hnas.training.step import SubnetPath
from tests.hnas.strategies.test_strategies import DIVIDED, SPACE, STEPS, TURNS, drawn, filled, kinds, places, steps_of


@pytest.mark.parametrize("name", ["spos", "fairnas"])
def test_without_a_teacher_every_path_is_a_plain_member(name):
    for step in steps_of(name):
        assert len(step) == (1 if name == "spos" else paths.most_types(SPACE))
        assert all(path == SubnetPath(path.arch) and path.arch in SPACE for path in step)


def test_spos_prefers_no_option():
    slot = places(SPACE)[0]
    taken = Counter(kind for step in steps_of("spos", n=1500) for kind in kinds(step[0].arch, slot))
    share = sum(taken.values()) / len(SPACE.choices[f"{slot}.op"].options)
    assert all(abs(count - share) < 5 * share**0.5 for count in taken.values())


def test_fairnas_favours_no_type_of_a_slot_with_few_over_many_steps():
    slot = SPACE.slots[0]
    assert len(paths.slot_types(SPACE, slot)) < paths.most_types(SPACE)
    counts = Counter(kind for step in steps_of("fairnas", n=300) for path in step for kind in kinds(path.arch, slot))
    assert max(counts.values()) < 1.1 * min(counts.values())


def test_the_random_paths_of_a_sandwich_share_no_type():
    for step in steps_of("sandwich"):
        for slot in SPACE.slots:
            taken = [kind for arch in drawn(step) for kind in kinds(arch, slot)]
            assert len(set(taken)) == min(len(taken), len(paths.slot_types(SPACE, slot)))


def test_a_sandwich_trains_the_largest_alone_at_first():
    pick = strategies.load("sandwich").pick
    for progress, alone in ((0.0, True), (0.39, True), (0.4, False), (0.9, False)):
        step = pick(SPACE, Random(0), progress, paths=1, first=0.4)
        assert step[0].arch == SPACE.largest
        assert (len(step) == 1) is alone


def test_the_union_teaches_but_is_no_member_and_its_students_do_not_outweigh_it():
    for teacher, *students in steps_of("hybrid_union"):
        assert teacher.arch not in SPACE
        assert all(path.arch in SPACE and not path.teaches and path.gates is None for path in students)
        assert sum(path.weight for path in students) == pytest.approx(teacher.weight)
        assert len(students) == paths.most_types(SPACE) + 1


def test_the_union_is_the_mean_that_owns_the_weights():
    supernet = filled(SPACE)
    (teacher, *_) = hybrid_union.pick(SPACE, Random(0))
    x = torch.randn(3, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(supernet(teacher.arch, x, gates=teacher.gates), supernet.union.train()(x))


def test_progressive_training_never_runs_a_type_that_is_not_open():
    phases = 1 + paths.most_types(SPACE)
    for k, step in enumerate(steps_of("hybrid_progressive", n=4 * phases)):
        known = hybrid_progressive.opened_types(SPACE, k // 4)
        assert all(kind in known[slot] for path in step for slot in SPACE.slots for kind in kinds(path.arch, slot))


def test_a_type_of_a_residual_slot_enters_as_the_identity():
    supernet, member = Supernet(SPACE), SPACE.largest
    slot = next(s for s in SPACE.slots if paths.IDENTITY in paths.slot_types(SPACE, s))
    x = torch.randn(2, 1, 12, 12)
    wanted = supernet(SPACE.changed(member, f"{slot}.op", paths.IDENTITY), x)
    for kind in paths.slot_types(SPACE, slot):
        torch.testing.assert_close(supernet(SPACE.changed(member, f"{slot}.op", kind), x), wanted)


def test_a_divided_slot_never_teaches_and_a_space_without_one_is_one_line():
    for step in steps_of("channel_split"):
        assert [path.teaches for path in step] == [True] + [False] * (len(step) - 1)
        assert all(path.arch in DIVIDED for path in step)
        assert not any("+" in kind for slot in DIVIDED.slots for kind in kinds(step[0].arch, slot))
    with pytest.raises(ValueError, match="has channels to divide; offer it") as caught:
        steps_of("channel_split", SPACE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["convex_combination", "set_sampling", "proxylessnas"])
def test_a_relaxed_path_never_teaches_and_empties_no_slot(name):
    for step in steps_of(name, **TURNS if name == "proxylessnas" else {}):
        for path in step:
            assert not path.teaches
            assert not path.rivals
            assert all(kinds(path.arch, slot) for slot in SPACE.slots if f"{slot}.op" in path.arch)


def test_a_set_has_constant_gates_that_keep_the_spread_of_one():
    for (path,) in steps_of("set_sampling"):
        for gates in path.gates.values():
            assert not gates.requires_grad
            assert len(gates) == 0 or float(gates.square().sum()) == pytest.approx(1.0)


def test_binary_gates_never_let_the_shut_type_through():
    supernet, x = filled(SPACE), torch.randn(2, 1, 12, 12)
    for _, path in steps_of("proxylessnas", n=8, **TURNS):
        open_ = {}
        for slot, gates in path.gates.items():
            branches = [kind for kind in kinds(path.arch, slot) if kind != paths.IDENTITY]
            taken = [kind for kind, gate in zip(branches, gates.tolist(), strict=True) if gate]
            open_[f"{slot}.op"] = taken[0] if taken else paths.IDENTITY
        member = SPACE.arch({k: v for k, v in {**path.arch, **open_}.items() if k in SPACE.choices})
        inputs = x[:, :, : SPACE.example(member)[0][1], : SPACE.example(member)[0][1]]
        torch.testing.assert_close(supernet(path.arch, inputs, gates=path.gates), supernet(member, inputs))


def test_the_ends_of_an_attentive_sandwich_have_no_rivals():
    for step in steps_of("attentive", n=4, banks=4):
        assert not step[0].rivals
        assert not step[-1].rivals
        assert all(rival in SPACE for path in step for rival in path.rivals)


def test_complexity_aware_steps_do_not_mix_small_and_large():
    model = complexity.fitted_model(SPACE)
    for step in steps_of("complexity_aware", banks=3):
        assert len({model.bank(path.arch, 3) for path in step}) == 1
        assert [path.teaches for path in step] == [True, False, False]
        assert model(step[0].arch) == max(model(path.arch) for path in step)


def test_before_the_switch_nothing_teaches():
    steps = steps_of("spos_then_hybrid", n=30)
    assert not any(path.teaches for step in steps[:20] for path in step)
    early, late = steps_of("spos_then_hybrid", switch=0.0), steps_of("spos_then_hybrid", switch=1.0)
    assert [len(s) for s in late] == [1] * STEPS
    assert min(map(len, early)) > 1
