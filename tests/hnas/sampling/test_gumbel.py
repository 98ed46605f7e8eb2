"""Gumbel-top-k against its exact probabilities and gradients, both by enumeration."""

from __future__ import annotations

import math
from collections import Counter
from itertools import permutations
from random import Random

import pytest
import torch

from hnas import spaces
from hnas.sampling import draws
from hnas.sampling.gumbel import draw_ranked

SPACE = spaces.load("tabular_digits")()
SLOT = SPACE.slots[0]
LOGITS = torch.tensor([1.0, 0.0, -0.5, 0.3, -1.2])


def logits(values: torch.Tensor = LOGITS) -> dict[str, torch.nn.Parameter]:
    return {slot: torch.nn.Parameter(values.clone()) for slot in SPACE.slots}


def test_ordered_pairs_have_their_exact_probabilities():
    """A pair (i, j) has the probability p_i p_j / (1 - p_i) (arXiv 1903.06059)."""
    extra, rng, n = logits(), Random(0), 8000
    drawn = [types.order[:2] for _ in range(n) for types in draw_ranked(SPACE, rng, extra).values()]
    counts, p = Counter(drawn), LOGITS.softmax(0).tolist()
    exact = {(i, j): p[i] * p[j] / (1 - p[i]) for i, j in permutations(range(5), 2)}
    assert sum(exact.values()) == pytest.approx(1)
    for pair, share in exact.items():
        spread = math.sqrt(share * (1 - share) / len(drawn))
        assert abs(counts[pair] / len(drawn) - share) < 4 * spread, pair


def test_ranks_are_exclusive_and_repeat_after_the_last_type():
    for seed in range(50):
        for types in draw_ranked(SPACE, Random(seed), logits()).values():
            assert sorted(types.order) == [0, 1, 2, 3, 4]
            assert {types.kind(k) for k in range(5)} == set(types.kinds)
            assert types.kind(5) == types.kind(0)


def test_equal_logits_draw_every_order_alike():
    rng, n = Random(1), 1500
    three = draws.keep_types(SPACE, dict.fromkeys(SPACE.slots, ("conv1", "dw5", "conv3")))
    orders = Counter(types.order for _ in range(n) for types in draw_ranked(three, rng, None).values())
    assert set(orders) == set(permutations(range(3)))
    drawn, spread = sum(orders.values()), math.sqrt(1 / 6 * 5 / 6 / sum(orders.values()))
    assert all(abs(count / drawn - 1 / 6) < 4 * spread for count in orders.values()), orders


@pytest.mark.parametrize("rank", [0, 1, 3, 4])
def test_the_weight_of_a_rank_is_one_hot_and_has_the_gradient_of_the_softmax_of_what_is_left(rank):
    extra = logits()
    types = draw_ranked(SPACE, Random(3), extra)[SLOT]
    gates = types.gates(rank, 0.7)
    assert gates.detach().tolist() == [float(k == types.order[rank]) for k in range(5)]
    slope = torch.tensor([0.3, -1.0, 2.0, 0.5, -0.2])
    (found,) = torch.autograd.grad((gates * slope).sum(), extra[SLOT])
    # By hand: the Jacobian of softmax over the types that are left, then that of log_softmax.
    left = sorted(types.order[rank:])
    q = torch.zeros(5)
    q[left] = (types.keys.detach()[left] / 0.7).softmax(0)
    of_keys = q * (slope - (q * slope).sum()) / 0.7
    p = LOGITS.softmax(0)
    torch.testing.assert_close(found, of_keys - p * of_keys.sum())


def test_a_low_temperature_gives_the_exact_gradient_and_a_high_one_a_small_one():
    """The mean of the straight-through gradient against that of the exact expectation, for a linear loss."""
    slope = torch.tensor([0.3, -1.0, 2.0, 0.5, -0.2])
    p = LOGITS.softmax(0)
    exact = p * (slope - (p * slope).sum())

    def share(tau: float) -> float:
        extra, rng = logits(), Random(0)
        total = torch.zeros(5)
        for _ in range(400):
            ranked = draw_ranked(SPACE, rng, extra)
            loss = sum((types.gates(0, tau) * slope).sum() for types in ranked.values())
            total += sum(torch.autograd.grad(loss, list(extra.values())))
        mean = total / 1600
        return float(mean @ exact / (exact @ exact))

    assert 0.02 < share(10.0) < 0.25
    assert 0.5 < share(1.0) < 0.95
    assert 0.85 < share(0.2) < 1.2


@pytest.mark.parametrize("tau", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_none_is_one_line(tau):
    with pytest.raises(ValueError, match=r"temperature tau is .*; it is a number above 0"):
        draw_ranked(SPACE, Random(0), None)[SLOT].gates(0, tau)


def test_logits_that_are_not_finite_or_of_another_space_are_one_line():
    with pytest.raises(ValueError, match=r"a logit of 'blocks\.0' is not finite"):
        draw_ranked(SPACE, Random(0), logits(torch.tensor([0.0, float("nan"), 0, 0, 0])))
    with pytest.raises(ValueError, match=r"not those of 'blocks\.0'"):
        draw_ranked(SPACE, Random(0), {SLOT: torch.zeros(3)})


def test_a_slot_with_one_type_has_one_rank():
    lone = draws.keep_types(SPACE, {SLOT: ("conv3",)})
    types = draw_ranked(lone, Random(0), draws.new_logits(lone))[SLOT]
    assert [types.kind(k) for k in range(3)] == ["conv3"] * 3
    assert types.gates(2, 1.0).tolist() == [1.0]
