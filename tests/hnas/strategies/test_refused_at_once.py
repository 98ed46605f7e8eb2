"""A differentiable search refuses options that it cannot use at its first step, before hours of training."""

from __future__ import annotations

from functools import partial
from random import Random

import pytest

from hnas import strategies
from hnas.sampling import draws
from hnas.sampling.expected import CostTable
from hnas.supernet import Supernet
from hnas.tasks.classification import Classification, keep_for_alpha
from hnas.training.loop import Schedule, train
from tests.hnas import tiny
from tests.hnas.strategies.test_differentiable import CELLS, FAMILY


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [*FAMILY, "proxylessnas"])
def test_a_logit_that_is_not_finite_stops_the_search_at_once(name, value):
    strategy, supernet = strategies.load(name), Supernet(CELLS)
    extra = strategy.extra(CELLS)
    extra[CELLS.slots[1]].data[2] = value
    line = r"^a logit of 'edges\.0_2' is not finite; go back to the last good checkpoint$"
    whole = tiny.task()
    task = Classification(keep_for_alpha(whole.splits, 0.5), whole.preprocessing, 16, flip=False, shift=1)
    with pytest.raises(ValueError, match=line):
        train(supernet, task, partial(strategy.pick, extra=extra), Schedule(((9, 0.1),)), extra=extra)


@pytest.mark.parametrize("tau", [(2.0, 0.0), (2.0, -1.0), (0.0, 1.0), (1.0, float("nan")), (float("inf"), 1.0)])
@pytest.mark.parametrize("name", ["gdas", "msgdas"])
def test_a_temperature_that_is_not_above_zero_is_refused_at_the_first_step(name, tau):
    strategy = strategies.load(name)
    line = r"^the temperature tau is \(.*\); it is \[first, last\], numbers above 0$"
    for extra in (None, strategy.extra(CELLS)):
        with pytest.raises(ValueError, match=line):
            strategy.pick(CELLS, Random(0), 0.0, extra, tau=tau)


@pytest.mark.parametrize("name", [*FAMILY, "proxylessnas"])
def test_a_table_without_a_gradient_is_refused_at_the_first_step(name):
    strategy = strategies.load(name)
    flat = CostTable(1.0, {slot: dict.fromkeys(draws.slot_types(CELLS, slot), 0.0) for slot in CELLS.slots})
    line = r"^the types of every slot have the same cost, so this cost has no gradient; choose another cost, or leave"
    with pytest.raises(ValueError, match=line):
        strategy.pick(CELLS, Random(0), 0.0, strategy.extra(CELLS), latency=flat)
