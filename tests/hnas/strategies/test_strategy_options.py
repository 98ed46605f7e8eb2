"""Options of strategies: layer-wise distillation, a random walk of complexity, latency in the loss."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch

from hnas import distillation
from hnas.sampling import complexity
from hnas.sampling import draws as paths
from hnas.sampling.expected import penalty
from hnas.strategies import complexity_aware, hybrid_progressive, proxylessnas
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.training.loop import Schedule, train
from hnas.training.step import SubnetPath
from tests.hnas import tiny
from tests.hnas.planted import latency
from tests.hnas.strategies.test_strategies import SPACE, STEPS, filled, places, steps_of


def test_a_new_type_imitates_the_teacher_in_one_slot_at_the_beginning_of_its_phase():
    phases, imitating = 1 + paths.most_types(SPACE), 0
    for k, step in enumerate(steps_of("hybrid_progressive", n=4 * phases, imitate=0.5)):
        fresh = hybrid_progressive.new_types(SPACE, k // 4)
        assert all((path.imitates is not None) == (k % 4 < 2 and bool(fresh)) for path in step[1:])
        for path in step[1:]:
            if slot := path.imitates:
                here = {name: option for name, option in path.arch.items() if not name.startswith(f"{slot}.")}
                assert path.arch in SPACE
                assert path.arch[f"{slot}.op"] == fresh[slot]
                assert here.items() <= dict(SPACE.largest.items()).items()
                imitating += 1
    assert imitating
    assert not any(path.imitates for step in steps_of("hybrid_progressive") for path in step), "off unless asked for"
    with pytest.raises(ValueError, match="it is a share of each phase, from 0 to 1"):
        steps_of("hybrid_progressive", imitate=1.5)


def test_imitation_brings_a_branch_near_the_teachers_and_moves_no_other_weight():
    """Layer-wise distillation reduces a distance that training on labels alone does not change."""
    supernet, batch = filled(SPACE), tiny.task().batch(0)
    slot, kind = next(iter(hybrid_progressive.new_types(SPACE, 2).items()))
    student = paths.relax(SPACE, SPACE.largest, {slot: (kind,)})

    def apart() -> float:
        seen = []
        for arch in (SPACE.largest, student):
            net = supernet.skeleton(arch)
            hook = net.get_submodule(slot).register_forward_hook(lambda *given: seen.append(given[2]))
            supernet(arch, *tiny.task().inputs(batch[0], SPACE.example(arch)))
            hook.remove()
        return float(distillation.imitation(seen[1], seen[0]).detach())

    before, teacher = apart(), SubnetPath(SPACE.largest, teaches=True, weight=1e-12)
    own = {name for name, _ in supernet.union.named_parameters() if name.startswith(f"{slot}.{kind}.")}
    weights = {name: p.detach().clone() for name, p in supernet.union.named_parameters()}
    plan = Schedule(((30, 0.1),), decay=0.0)
    train(supernet, tiny.task(), lambda *_: (teacher, SubnetPath(student, imitates=slot)), plan)
    assert apart() < 0.7 * before
    now = {name: p.detach() for name, p in supernet.union.named_parameters()}
    moved = {name for name, p in now.items() if float((p - weights[name]).abs().max()) > 1e-6}
    assert moved
    assert moved <= own
    with pytest.raises(ValueError, match="none that teaches comes before it"):
        train(supernet, tiny.task(), lambda *_: (SubnetPath(student, imitates=slot),), plan)


def test_a_random_walk_of_complexity_is_the_same_in_every_run_and_moves_by_one(monkeypatch):
    monkeypatch.setattr(complexity, "SAMPLES", 16)
    model, steps = complexity.fitted_model(SPACE), steps_of("complexity_aware", banks=3, moves=STEPS)
    taken = [{model.bank(path.arch, 3) for path in step} for step in steps]
    assert all(len(bank) == 1 for bank in taken), "a member outside the range is drawn again"
    walk = [bank for (bank,) in taken]
    assert max(abs(a - b) for a, b in pairwise(walk)) == 1
    assert walk == [complexity_aware.bank_of_walk(k / STEPS, 3, STEPS) for k in range(STEPS)]
    assert walk != [complexity_aware.bank_of_sweep(k / STEPS, 3, 8) for k in range(STEPS)]


def test_the_expected_latency_is_a_mean_that_pulls_logits_towards_what_is_fast():
    study = Study(Supernet(SPACE), tiny.task(), {"latency_ms": latency})
    extra, costs = proxylessnas.extra(SPACE), proxylessnas.latencies(study, SPACE)
    table = costs.types
    mean = costs.base + sum(sum(own.values()) / len(own) for own in table.values())
    value = penalty(SPACE, costs, extra, 1.0, None)
    assert value.item() == pytest.approx(mean)
    value.backward()
    for slot in places(SPACE):
        own = torch.tensor(list(table[slot].values()))
        torch.testing.assert_close(extra[slot].grad, (own - own.mean()) / len(own))
    others = proxylessnas.extra(SPACE)
    value = penalty(SPACE, costs, others, 1.0, None, dict.fromkeys(places(SPACE), (0, 1)))
    assert value.item() == pytest.approx(mean), "the value is that of all types"
    value.backward()
    for slot in places(SPACE):
        own = torch.tensor(list(table[slot].values())[:2])
        torch.testing.assert_close(others[slot].grad[:2], (own - own.mean()) / 2)
        assert not others[slot].grad[2:].any(), "types that were not drawn"
    heavy = {"extra": extra, "latency": costs, "weight": 1e3, "warmup": 0.0}
    pick = partial(proxylessnas.pick, **heavy)
    train(Supernet(SPACE), tiny.task(), pick, Schedule(((40, 0.0),)), extra=extra)
    for slot in places(SPACE):
        fastest = min(table[slot], key=table[slot].__getitem__)
        assert paths.slot_types(SPACE, slot)[int(extra[slot].argmax())] == fastest
