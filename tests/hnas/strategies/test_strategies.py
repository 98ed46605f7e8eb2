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
from hnas.strategies import proxylessnas
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
