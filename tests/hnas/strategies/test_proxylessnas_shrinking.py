"""ProxylessNAS in a space that shrinks: logits follow the space from stage to stage."""

from __future__ import annotations

from functools import partial
from random import Random
from typing import Any

import pytest
import torch
from torch import nn

from hnas.sampling import draws as paths
from hnas.sampling.expected import CostTable
from hnas.shrinking.edits import ShrinkRules
from hnas.shrinking.loop import StageTraining, run_stages
from hnas.space import Space
from hnas.strategies import proxylessnas
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.training.loop import Schedule
from tests.hnas import tiny
from tests.hnas.planted import digits, known
from tests.hnas.strategies.test_proxylessnas import TURNS


def test_logits_follow_a_space_that_shrinks_and_one_that_gets_a_type_back():
    whole = digits()
    less = whole.without("blocks.1.op", "conv1").without("blocks.1.op", "dw5")
    extra = paths.new_logits(whole)
    known_ = dict(zip(paths.slot_types(whole, "blocks.1"), [0.5, -1.0, 0.25, 2.0, 0.75], strict=True))
    extra["blocks.1"].data = torch.tensor(list(known_.values()))
    paths.follow_space(extra, whole, less)
    assert extra["blocks.1"].tolist() == [known_[kind] for kind in paths.slot_types(less, "blocks.1")]
    assert len(extra["blocks.0"]) == 5
    paths.follow_space(extra, less, whole)
    kept = [known_[kind] for kind in paths.slot_types(less, "blocks.1")]
    wanted = [known_[k] if k not in ("conv1", "dw5") else sum(kept) / 3 for k in paths.slot_types(whole, "blocks.1")]
    assert extra["blocks.1"].tolist() == pytest.approx(wanted)
    assert all(isinstance(logits, nn.Parameter) for logits in extra.values())


def test_every_stage_of_a_shrinking_goes_on_with_the_logits_of_those_that_stayed():
    whole = digits()
    study = Study(Supernet(whole), tiny.task())
    extra = proxylessnas.extra(whole)
    pick = partial(proxylessnas.pick, extra=extra, **TURNS)
    begun: list[dict[str, dict[str, float]]] = []

    def now(space: Space) -> dict[str, dict[str, float]]:
        return {s: dict(zip(paths.slot_types(space, s), extra[s].tolist(), strict=True)) for s in space.slots}

    def worth(study: Study, space: Space) -> dict[tuple[str, Any], float]:
        begun.append(now(space))
        names = [f"{slot}.op" for slot in space.slots]
        return {
            (name, option): Random(f"{name}/{option}").random()
            for name in names
            for option in space.choices[name].options
        }

    first = Schedule(((4, 0.05),))
    training = StageTraining([first, Schedule(((1, 0.0),))], pick, extra)
    left = run_stages(study, whole, worth, training, ShrinkRules(6), key="x")
    assert left.size < whole.size
    assert set(now(left)) == set(whole.slots)
    for slot, logits in now(left).items():
        for kind, logit in logits.items():
            assert abs(logit - begun[0][slot][kind]) < 0.01, "one architecture step later"
    assert any(abs(logit) > 0 for logits in begun[0].values() for logit in logits.values())


def test_latencies_are_by_type_so_that_they_outlast_a_drop():
    study = known()
    space = study.supernet.space
    table = proxylessnas.latencies(study, space)
    less = space.without("blocks.0.op", "conv1")
    extra = paths.new_logits(space)
    paths.follow_space(extra, space, less)
    step = proxylessnas.pick(less, Random(0), 0.5, extra, latency=table)
    assert bool(torch.isfinite(step[1].penalty))
    with pytest.raises(ValueError, match=r"no cost for 'identity' in 'blocks\.0'; make the table with latencies"):
        proxylessnas.pick(space, Random(0), 0.5, paths.new_logits(space), latency=CostTable(0.0, {}))
