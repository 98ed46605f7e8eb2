"""Strategies with architecture parameters, and in spaces with little to choose from."""

from __future__ import annotations

from functools import partial
from random import Random

import pytest
import torch
from torch import nn

from hnas import strategies
from hnas.sampling import draws as paths
from hnas.strategies import proxylessnas, spos
from hnas.supernet import Supernet
from hnas.training.loop import Schedule, train
from hnas.training.step import SubnetPath
from tests.hnas import tiny
from tests.hnas.strategies.test_strategies import (
    LONELY,
    ONE,
    OWN,
    SPACE,
    kinds,
    places,
    steps_of,
)


@pytest.mark.parametrize("name", ["convex_combination", "proxylessnas"])
def test_training_moves_the_architecture_parameters_of_every_slot(name):
    strategy = strategies.load(name)
    extra = strategy.extra(SPACE)
    assert set(extra) == set(SPACE.slots)
    train(Supernet(SPACE), tiny.task(), partial(strategy.pick, extra=extra), Schedule(((12, 0.1),)), extra=extra)
    for slot in places(SPACE):
        assert extra[slot].detach().abs().max() > 0
        assert extra[slot].detach().sum().abs() < 0.1  # of softmax: what one gains the others lose


def test_types_are_drawn_by_their_logits():
    extra = proxylessnas.extra(SPACE)
    slot = places(SPACE)[1]
    with torch.no_grad():
        extra[slot][2] = 20.0
    for step in steps_of("proxylessnas", extra=extra):
        for path in step:
            assert not kinds(path.arch, slot) or paths.slot_types(SPACE, slot)[2] in kinds(path.arch, slot)
    mixture = strategies.load("convex_combination").pick(SPACE, Random(0), extra=extra)[0]
    if slot in mixture.gates:
        assert mixture.gates[slot].max() > 0.99


@pytest.mark.parametrize("name", ["convex_combination", "proxylessnas"])
def test_foreign_architecture_parameters_are_one_line(name):
    with pytest.raises(ValueError, match="make them with extra") as caught:
        steps_of(name, extra={slot: nn.Parameter(torch.zeros(1)) for slot in SPACE.slots})
    assert "\n" not in str(caught.value)


# --- spaces with little to choose from --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("kind", ["one operation", "one arch"])
def test_a_slot_with_one_operation_and_a_space_of_one_arch_train_or_are_refused_in_one_line(name, kind):
    space = LONELY if kind == "one operation" else ONE
    strategy, supernet = strategies.load(name), Supernet(space)
    extra = strategy.extra(space) if hasattr(strategy, "extra") else {}
    pick = partial(strategy.pick, extra=extra) if extra else strategy.pick
    refused = {"channel_split": "^no slot of the space .* has channels to divide", "msgdas": "^2 exclusive sub-graphs"}
    if name in refused:
        with pytest.raises(ValueError, match=refused[name]):
            train(supernet, tiny.task(), pick, Schedule(((2, 0.05),)))
        return
    train(supernet, tiny.task(), pick, Schedule(((2, 0.05),)), extra=extra)
    assert supernet.version == 2
    assert all(torch.isfinite(p).all() for p in supernet.union.parameters())


def test_spos_is_the_yardstick():
    (path,) = spos.pick(SPACE, Random(3))
    assert path == SubnetPath(SPACE.sample(Random(3)))
