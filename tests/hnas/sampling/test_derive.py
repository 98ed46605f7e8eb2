"""The architecture that logits and a window name, against an enumeration of all members."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from random import Random

import pytest
import torch

from hnas import spaces
from hnas.cost import Price
from hnas.cost.counts import counted
from hnas.sampling.derive import derive, derive_inside, derive_measured, skips_of
from hnas.sampling.draws import keep_types, relax, slot_types
from hnas.sampling.expected import expected_cost, latencies, penalty, type_costs
from hnas.space import Arch, Space
from hnas.spaces.tabular_digits import SLOTS, TYPES, arch_of, read_table
from hnas.supernet import Supernet
from tests.hnas import tiny

SPACE = spaces.load("tabular_digits")()
KINDS = tuple(TYPES)
WEIGHTS = {"identity": 0.0, "conv1": 0.3, "avg3": 0.5, "dw5": 0.9, "conv3": 1.1}


def random_logits(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {slot: torch.randn(len(KINDS), generator=generator) for slot in SLOTS}


def regret(arch: Arch, logits: dict[str, torch.Tensor], space: Space = SPACE) -> float:
    total = 0.0
    for slot, own in logits.items():
        p = torch.log_softmax(own.double(), 0)
        total += float(p.max() - p[slot_types(space, slot).index(arch[f"{slot}.op"])])
    return total


def price(arch: Arch) -> float:
    """A latency that does not add up: the last slot is dearer after a convolution."""
    kinds = [str(arch[f"{slot}.op"]) for slot in SLOTS]
    return 1.0 + sum(WEIGHTS[kind] for kind in kinds) + 0.2 * (kinds[-2:] == ["conv3", "conv3"])


def test_every_slot_takes_its_most_likely_type():
    for seed in range(20):
        logits = random_logits(seed)
        assert regret(derive(SPACE, logits), logits) == 0


def test_a_derived_member_of_a_space_with_sizes_is_a_member_of_it():
    space = tiny.space()
    logits = {slot: torch.randn(len(space.choices[f"{slot}.op"].options)) for slot in space.slots}
    assert derive(space, logits) in space


@pytest.mark.parametrize("most", [0, 1, 2])
def test_the_identities_that_stay_are_those_whose_loss_costs_most(most):
    for seed in range(20):
        logits = random_logits(seed)
        for slot in SLOTS:
            logits[slot][0] += 2.0
        found = derive(SPACE, logits, max_skips=most)
        members = map(arch_of, product(KINDS, repeat=4))
        allowed = [arch for arch in members if list(arch.values()).count("identity") <= most]
        assert regret(found, logits) == pytest.approx(min(regret(arch, logits) for arch in allowed))


def test_the_types_that_pass_their_input_on_are_found_in_every_space():
    assert skips_of(SPACE) == dict.fromkeys(SLOTS, ("identity",))
    cells = spaces.load("nasbench201")(nodes=3)
    assert skips_of(cells) == dict.fromkeys(cells.slots, ("skip_connect",))


def test_a_slot_that_has_the_identity_alone_cannot_lose_it():
    lone = keep_types(SPACE, dict.fromkeys(SLOTS, ("identity",)))
    logits = {slot: torch.zeros(1) for slot in SLOTS}
    with pytest.raises(ValueError, match="more than 3 slots have no type but the identity"):
        derive(lone, logits, max_skips=3)


def test_logits_that_are_not_finite_are_one_line():
    with pytest.raises(ValueError, match=r"a logit of 'blocks\.1' is not finite"):
        derive(SPACE, random_logits(0) | {"blocks.1": torch.tensor([0.0, float("inf"), 0, 0, 0])})


def test_the_member_inside_a_window_has_nearly_the_least_regret_of_all_inside():
    """The table errs where types interact, so the best inside can be missed, but rarely, and never the window."""
    table, missed = type_costs(SPACE, price), []
    members = [arch_of(kinds) for kinds in product(KINDS, repeat=4)]
    rng = Random(0)
    for seed in range(20):
        logits, low = random_logits(seed), rng.uniform(1.0, 4.0)
        window = (low, low + 0.4)
        inside = [arch for arch in members if window[0] <= price(arch) <= window[1]]
        found = derive_inside(SPACE, logits, table, price, window)
        assert window[0] <= price(found.arch) == found.price <= window[1]
        assert found.regret == pytest.approx(regret(found.arch, logits))
        missed.append(found.regret - min(regret(arch, logits) for arch in inside))
    assert min(missed) > -1e-9
    assert sum(miss > 1e-6 for miss in missed) <= 3


def test_a_computed_cost_that_does_not_add_up_has_the_least_regret_in_every_window():
    """The memory has a maximum over the operations; each window holds one price of the 27 networks."""
    space = tiny.space(types=("skip", "convnext", "mbconv", "fusedconv"), depths=((1,), (1, 2)))
    memory, kinds = counted(space, Supernet(space).skeleton)["memory"], [slot_types(space, s) for s in space.slots]
    members = [
        relax(space, space.largest, {s: (k,) for s, k in zip(space.slots, each, strict=True)})
        for each in product(*kinds)
    ]
    prices = {arch: memory(arch).value for arch in members}
    table, generator = type_costs(space, prices.__getitem__), torch.Generator().manual_seed(0)
    for value in sorted(set(prices.values())):
        logits = {s: torch.randn(len(own), generator=generator) for s, own in zip(space.slots, kinds, strict=True)}
        regrets = {arch: regret(arch, logits, space) for arch, found in prices.items() if found == value}
        found = derive_inside(space, logits, table, prices.__getitem__, (value, value), cheap=True)
        assert found.price == value
        assert found.regret == pytest.approx(min(regrets.values()))


def test_the_most_likely_member_is_priced_first_and_alone_where_it_fits():
    asked: list[Arch] = []
    logits = random_logits(1)
    found = derive_inside(SPACE, logits, type_costs(SPACE, price), lambda a: asked.append(a) or price(a), (0.0, 99.0))
    assert asked == [found.arch] == [derive(SPACE, logits)]


def test_a_window_that_nothing_satisfies_is_one_line_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"^none of the \d+ networks that were priced is inside \[0, 0.5\]; the nearest has"
    ):
        derive_inside(SPACE, random_logits(0), type_costs(SPACE, price), price, (0.0, 0.5))


def test_the_costs_of_the_shipped_table_add_up_to_those_of_a_member():
    """MACs add up exactly; the table of types has the MACs of every member."""
    rows = read_table()
    table = type_costs(SPACE, lambda arch: float(rows[arch].macs))
    for seed in range(20):
        arch = SPACE.sample(Random(seed))
        assert table.of(arch) == pytest.approx(rows[arch].macs)


def test_the_expected_cost_is_a_mean_and_the_hinge_is_silent_below_its_limit():
    table = type_costs(SPACE, price)
    logits = {slot: torch.zeros(len(KINDS), requires_grad=True) for slot in SLOTS}
    shares = {slot: own.detach().softmax(0) for slot, own in logits.items()}
    mean = table.base + float(expected_cost(SPACE, table.types, shares))
    # Of one slot at a time, from the largest member: what the table says.
    assert mean == pytest.approx(table.base + sum(sum(own.values()) / 5 for own in table.types.values()))
    silent = penalty(SPACE, table, logits, 1.0, mean + 0.1)
    assert silent.item() == 0.0
    loud = penalty(SPACE, table, logits, 2.0, mean / 2)
    assert loud.item() == pytest.approx(2.0, rel=1e-5)
    loud.backward()
    for slot, own in logits.items():
        dear = max(table.types[slot], key=lambda kind, slot=slot: table.types[slot][kind])
        assert own.grad[KINDS.index(dear)] > 0 > own.grad[KINDS.index("identity")]
    assert penalty(SPACE, None, logits, 1.0, None) is None


@pytest.mark.parametrize(("share", "sign"), [(0.5, 1), (1.0, 0), (2.0, -1)])
def test_a_window_pushes_the_cost_in_from_both_sides(share, sign):
    """The expected cost is above the window, in it, or below it."""
    table = type_costs(SPACE, price)
    logits = {slot: torch.zeros(len(KINDS), requires_grad=True) for slot in SLOTS}
    mean = float(penalty(SPACE, table, logits, 1.0, None).detach())
    low, high = 0.9 * share * mean, 1.1 * share * mean
    found = penalty(SPACE, table, logits, 2.0, (low, high))
    wanted = {1: 2 * (mean / high - 1), 0: 0.0, -1: 2 * (1 - mean / low)}[sign]
    assert found.item() == pytest.approx(wanted, abs=1e-6)
    found.backward()
    dearest = [logits[slot].grad[KINDS.index("conv3")].sign().item() for slot in SLOTS]
    assert dearest == [sign] * 4
    assert penalty(SPACE, table, logits, 2.0, (0.0, high)).item() == pytest.approx(
        2 * max(0.0, mean / high - 1), abs=1e-6
    )


def test_a_window_that_ends_before_it_begins_is_one_line():
    logits = {slot: torch.zeros(len(KINDS)) for slot in SLOTS}
    with pytest.raises(ValueError, match=r"^the window of the cost is \[3, 2\]; give the lower end first, "):
        penalty(SPACE, type_costs(SPACE, price), logits, 1.0, (3.0, 2.0))


class Prices:
    """A study that has prices and nothing else."""

    def __init__(self, price: Callable[[Arch], float]) -> None:
        self.of = price

    def price(self, arch: Arch, metric: str) -> Price:
        return Price(self.of(arch), "ms", 0.0, 0.0, "measured")


def test_a_cost_without_a_gradient_or_a_finite_value_is_one_line():
    for metric in ("latency_ms", "measured_ms"):
        with pytest.raises(ValueError, match=r"^the types of every slot have the same latency, so this cost has no"):
            latencies(Prices(lambda _: 2.0), SPACE, metric)
    endless = lambda arch: math.inf if arch["blocks.2.op"] == "dw5" else price(arch)  # noqa: E731
    with pytest.raises(
        ValueError, match=r"^'dw5' in 'blocks\.2' costs inf: the network with it cannot be built; leave"
    ):
        latencies(Prices(endless), SPACE)
    with pytest.raises(ValueError, match=r"^the largest member costs nan"):
        type_costs(SPACE, lambda _: math.nan)


def test_members_that_cannot_be_built_are_passed_over():
    """Each third member has an infinite price, as one that a runtime refuses; the window is kept all the same."""
    rng, refused = Random(0), set[Arch]()

    def patchy(arch: Arch) -> float:
        if rng.random() < 1 / 3:
            refused.add(arch)
            return math.inf
        return price(arch)

    table = type_costs(SPACE, price)
    for seed in range(10):
        assert 1.5 <= derive_inside(SPACE, random_logits(seed), table, patchy, (1.5, 1.9)).price <= 1.9
    assert refused
    with pytest.raises(
        ValueError, match=r"^none of the 32 networks that were .* \[0, 9\]; none could be built and run$"
    ):
        derive_inside(SPACE, random_logits(0), table, lambda _: math.inf, (0.0, 9.0))


def test_a_table_of_another_scale_does_not_mislead():
    """A predicted table is often several times too small; the prices so far correct it."""
    small = type_costs(SPACE, lambda arch: 0.01 * price(arch) ** 1.2)
    for seed in range(10):
        logits, window = random_logits(seed), (1.5, 1.9)
        found = derive_inside(SPACE, logits, small, price, window)
        assert window[0] <= found.price <= window[1]


def test_a_measured_price_is_confirmed_and_keeps_a_margin():
    """A quick measurement is off by up to 10 %, one for each member, so it alone leaves the window."""
    table, (low, high) = type_costs(SPACE, price), (2.45, 2.75)

    def quick(arch: Arch) -> float:
        return price(arch) * Random(arch.digest).uniform(0.9, 1.1)

    lost = 0
    for seed in range(40):
        logits = random_logits(seed)
        lost += not low <= price(derive_inside(SPACE, logits, table, quick, (low, high)).arch) <= high
        found = derive_measured(SPACE, logits, table, quick, price, (low, high))
        assert 1.03 * low <= price(found.arch) == found.price <= 0.97 * high
    assert lost > 3


def test_a_window_too_narrow_for_a_margin_is_kept_all_the_same():
    """Prices are 1.0, 1.3 and higher: the first window has no room for a margin, the second no member inside by it."""
    table = type_costs(SPACE, price)
    for window in ((1.29, 1.31), (1.2, 1.31)):
        asked: list[Arch] = []

        def counted(arch: Arch, asked: list[Arch] = asked) -> float:
            asked.append(arch)
            return price(arch)

        found = derive_measured(SPACE, random_logits(0), table, counted, price, window)
        assert window[0] <= price(found.arch) <= window[1]
        assert len(asked) == len(set(asked)), "the second look for a member measures nothing again"
