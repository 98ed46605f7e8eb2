"""Every training strategy has a law that uniform single paths break, so that no strategy is an alias of another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from random import Random

import pytest
import torch

from hnas import strategies
from hnas.sampling import complexity
from hnas.sampling import draws as paths
from hnas.space import Arch, Space
from hnas.strategies import hybrid_progressive, hybrid_union, proxylessnas
from hnas.supernet import Supernet
from hnas.training.step import SubnetPath
from tests.hnas import tiny

STEPS = 24
DIVISIONS = ("convnext+mbconv", "attention+fusedconv")
SPACE = tiny.space()
DIVIDED = tiny.space(divisions=DIVISIONS)
LONELY = tiny.space(types=("mbconv",))
ONE = SPACE.alone(SPACE.smallest)
TURNS = {"extra": proxylessnas.extra(SPACE), "warmup": 0.0}  # architecture steps from the first on
Step = tuple[SubnetPath, ...]


def space_of(name: str) -> Space:
    return DIVIDED if name == "channel_split" else SPACE


def steps_of(name: str, space: Space | None = None, n: int = STEPS, **options) -> list[Step]:
    """Return the steps of a whole schedule of ``n`` steps."""
    strategy, space = strategies.load(name), space or space_of(name)
    return [strategy.pick(space, Random(f"0/{k}"), k / n, **options) for k in range(n)]


def kinds(arch: Arch, slot: str) -> tuple[str, ...]:
    """Return the types that are active in a slot; none where the slot is not reached."""
    taken = arch.get(f"{slot}.op", ())
    return taken if isinstance(taken, tuple) else (str(taken),)


def places(space: Space) -> list[str]:
    return [slot for slot in space.slots if len(paths.slot_types(space, slot)) > 1]


def drawn(step: Step) -> list[Arch]:
    """Return the archs of a step between its first and its last path."""
    return [path.arch for path in step[1:-1]]


def filled(space: Space) -> Supernet:
    """Return a supernet in which no branch has zero output."""
    supernet, generator = Supernet(space), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in supernet.union.named_parameters():
            if name.endswith("out.weight"):
                parameter.copy_(1 + 0.1 * torch.randn(parameter.shape, generator=generator))
    return supernet


# --- laws that uniform single paths break -----------------------------------------------------------------------------


def both_ends_are_in_every_step(space: Space, steps: list[Step]) -> None:
    for step in steps:
        assert (step[0].arch, step[-1].arch) == (space.largest, space.smallest)
        assert [path.teaches for path in step] == [True] + [False] * (len(step) - 1)


def every_step_trains_every_type_alike(space: Space, steps: list[Step]) -> None:
    for step in steps:
        for slot in space.slots:
            counts = Counter(kind for path in step for kind in kinds(path.arch, slot))
            if counts:
                assert set(counts) == set(paths.slot_types(space, slot))
                assert max(counts.values()) - min(counts.values()) <= 1


def every_step_trains_every_weight(space: Space, steps: list[Step]) -> None:
    supernet = Supernet(space)
    everything = {name for name, _ in supernet.union.named_parameters()}
    for step in steps:
        whole = supernet.where(step[0].arch)
        assert step[0].teaches
        assert set(whole) == everything
        assert all(index is None for _, index in whole.values())


def types_open_from_the_most_costly_to_the_cheapest(space: Space, steps: list[Step]) -> None:
    for slot in space.slots:
        options, seen = space.choices[f"{slot}.op"].options, 0
        for step in steps:
            assert step[0] == SubnetPath(space.largest, teaches=True)
            lowest = min(options.index(k) for path in step for k in kinds(path.arch, slot) or options[-1:])
            seen = max(seen, len(options) - lowest)
        assert seen == len(options)
    assert [len(step) for step in steps[: len(steps) // 6]] == [1] * (len(steps) // 6)


def every_step_divides_every_slot_that_it_can(space: Space, steps: list[Step]) -> None:
    for step in steps:
        mixed = step[-2].arch
        for slot in space.slots:
            able = any("+" in option for option in space.choices[f"{slot}.op"].options)
            assert all(("+" in kind) == able for kind in kinds(mixed, slot))
        for arch in drawn(step)[:-1]:
            assert not any("+" in kind for slot in space.slots for kind in kinds(arch, slot))


def all_types_are_active_everywhere(space: Space, steps: list[Step]) -> None:
    for (path,) in steps:
        for slot in places(space):
            assert kinds(path.arch, slot) in ((), paths.slot_types(space, slot))
        assert all(float(gates.detach().sum()) <= 1 + 1e-6 for gates in path.gates.values())
        assert path.gates


def sets_of_every_size_are_drawn(space: Space, steps: list[Step]) -> None:
    for slot in places(space):
        sizes = {len(kinds(path.arch, slot)) for step in steps for path in step} - {0}
        assert len(sizes) >= min(3, len(paths.slot_types(space, slot)))


def weights_take_turns_with_types_of_which_one_in_two_is_open(space: Space, steps: list[Step]) -> None:
    for trained, path in steps:
        assert trained == SubnetPath(trained.arch)
        assert trained.arch in space
        assert set(path.moves) == set(places(space))
        for slot in places(space):
            assert len(path.moves[slot]) == 2
            assert len(kinds(path.arch, slot)) in (0, 2)
        for slot, gates in path.gates.items():
            assert set(gates.tolist()) <= {0.0, 1.0}
            assert gates.sum() == 1 or paths.IDENTITY in kinds(path.arch, slot)


def a_random_path_is_the_best_of_three_of_like_complexity(space: Space, steps: list[Step]) -> None:
    model = complexity.fitted_model(space)
    near = [len({model.bank(a, 4) for a in (p.arch, *p.rivals)}) == 1 for step in steps for p in step[1:-1]]
    assert all(len(path.rivals) == 2 for step in steps for path in step[1:-1])
    assert sum(near) > 0.9 * len(near) > 0


def complexity_moves_by_one_bank_at_most(space: Space, steps: list[Step]) -> None:
    model = complexity.fitted_model(space)
    taken = [[model.bank(path.arch, 3) for path in step] for step in steps]
    assert all(abs(a - b) <= 1 for one, two in pairwise(taken) for a in one for b in two)
    assert {bank for step in taken for bank in step} == {0, 1, 2}


def paths_are_single_for_two_thirds_only(space: Space, steps: list[Step]) -> None:
    single = [len(step) == 1 for step in steps]
    assert single == sorted(single, reverse=True)
    assert sum(single) == 2 * len(steps) // 3
    assert steps[-1][0].teaches


def a_mixture_on_images_of_its_own_trains_the_logits(space: Space, steps: list[Step]) -> None:
    for trained, searched in steps:
        assert (trained.split, searched.split) == ("train", "alpha")
        for path in (trained, searched):
            assert all(kinds(path.arch, slot) in ((), paths.slot_types(space, slot)) for slot in space.slots)
        assert not any(gates.requires_grad for gates in trained.gates.values())
        assert all(gates.requires_grad for gates in searched.gates.values())


def one_gated_type_of_every_slot_trains_the_logits(space: Space, steps: list[Step]) -> None:
    for trained, searched in steps:
        assert trained == SubnetPath(trained.arch)
        assert trained.arch in space
        assert searched.split == "alpha"
        assert all(len(kinds(searched.arch, slot)) in (0, 1) for slot in space.slots)
        assert set(searched.gates) == {s for s in space.slots if f"{s}.op" in searched.arch}
        assert {float(gate.detach()) for gates in searched.gates.values() for gate in gates} <= {1.0}


def exclusive_sub_graphs_follow_a_teacher_that_is_not_trained(space: Space, steps: list[Step]) -> None:
    for step in steps:
        teacher, weights, logits = step[0], step[1:3], step[3:]
        assert (teacher.teaches, teacher.trains) == (True, False)
        assert [path.split for path in step] == ["train"] * 3 + ["alpha"] * 2
        for one, two in (weights, logits):
            for slot in places(space):
                taken = kinds(one.arch, slot) + kinds(two.arch, slot)
                assert len(set(taken)) == len(taken)


def the_identity_drops_less_and_less_of_its_input(space: Space, steps: list[Step]) -> None:
    a_mixture_on_images_of_its_own_trains_the_logits(space, steps)
    rates = [step[0].drop.rate for step in steps]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 0.3 > 10 * rates[-1]


Law = Callable[[Space, list[Step]], None]
OWN: dict[str, tuple[Law, dict[str, object]]] = {
    "sandwich": (both_ends_are_in_every_step, {}),
    "fairnas": (every_step_trains_every_type_alike, {}),
    "hybrid_union": (every_step_trains_every_weight, {}),
    "hybrid_progressive": (types_open_from_the_most_costly_to_the_cheapest, {}),
    "channel_split": (every_step_divides_every_slot_that_it_can, {}),
    "convex_combination": (all_types_are_active_everywhere, {}),
    "set_sampling": (sets_of_every_size_are_drawn, {}),
    "proxylessnas": (weights_take_turns_with_types_of_which_one_in_two_is_open, TURNS),
    "attentive": (a_random_path_is_the_best_of_three_of_like_complexity, {"banks": 4}),
    "complexity_aware": (complexity_moves_by_one_bank_at_most, {"banks": 3, "sweeps": 2}),
    "spos_then_hybrid": (paths_are_single_for_two_thirds_only, {}),
    "darts": (a_mixture_on_images_of_its_own_trains_the_logits, TURNS),
    "pdarts": (the_identity_drops_less_and_less_of_its_input, TURNS),
    "gdas": (one_gated_type_of_every_slot_trains_the_logits, TURNS),
    "msgdas": (exclusive_sub_graphs_follow_a_teacher_that_is_not_trained, {**TURNS, "guidance": True}),
}


@pytest.mark.parametrize("name", OWN)
def test_a_strategy_keeps_its_law_and_uniform_single_paths_do_not(name):
    law, options = OWN[name]
    space = space_of(name)
    law(space, steps_of(name, **options))
    with pytest.raises((AssertionError, ValueError, TypeError, AttributeError, IndexError)):
        law(space, steps_of("spos", space))


def test_every_strategy_that_trains_has_a_law():
    training = {name for name in strategies.names() if hasattr(strategies.load(name), "pick")}
    assert training - {"alone", "spos"} <= set(OWN)


# --- what they must not do --------------------------------------------------------------------------------------------


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
