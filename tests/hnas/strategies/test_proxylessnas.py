"""ProxylessNAS: weights and logits are trained alternately, and two types compete in each step."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hnas import distributed
from hnas.ops.slot import Slot
from hnas.sampling.expected import CostTable
from hnas.space import Arch, Choice, Space
from hnas.strategies import proxylessnas
from hnas.supernet import Supernet
from hnas.training import checkpoint as checkpoints
from hnas.training.loop import CheckpointOptions, Observer, Schedule, train
from hnas.training.optimiser import Diverged, MaskedSGD
from hnas.training.step import SubnetPath
from tests.hnas import tiny
from tests.hnas.training.test_training import equal

SLOT, KINDS = "slot", ("poor", "fair", "good")
STILL = Schedule(((24, 0.0),), decay=0.0)  # the weights stay, the logits move
TURNS = {"warmup": 0.0}


class Scaled(nn.Module):
    """x -> weight * x."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.out = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.out.weight, weight)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.out.weight.squeeze()


class Net(nn.Module):
    """A net whose class scores are the output of its one slot."""

    def __init__(self, weights: Mapping[str, float], kinds: Any, *, gated: bool) -> None:
        super().__init__()
        self.slot = Slot({kind: Scaled(weights[kind]) for kind in kinds}, residual=False, gated=gated)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.slot(x)
        return scores


class OneHot:
    """A task whose images are their labels: a type with a larger weight is better, whatever else is open."""

    splits = ("train", "calibration", "search", "test")

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.seen: list[list[int]] = []

    def batch(self, step: int) -> tuple[Any, Tensor]:
        labels = torch.arange(step, step + 4) % 4
        return labels, labels

    def held(self, split: str) -> tuple[Any, Tensor]:
        self.asked.append(split)
        return torch.arange(100, 110), torch.arange(100, 110) % 4

    def inputs(self, raw: Tensor, shapes: object) -> tuple[Tensor, ...]:
        del shapes
        self.seen.append(raw.tolist())
        return (F.one_hot(raw % 4, 4).float(),)

    def loss(self, outputs: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Tensor:
        del teacher
        return F.cross_entropy(outputs, labels)

    def to_json(self) -> dict[str, str]:
        return {"name": "one-hot"}


def contest(weights: Mapping[str, float]) -> Supernet:
    """Return a supernet of one slot whose types scale their input by these weights."""

    def build(arch: Arch) -> nn.Module:
        taken = arch["slot.op"]
        return Net(weights, taken if isinstance(taken, tuple) else (taken,), gated=isinstance(taken, tuple))

    choices = {"slot.op": Choice(KINDS)}
    union = partial(Net, weights, KINDS, gated=False)
    return Supernet(Space("contest", {}, choices, build, union, lambda _: ((4,),), lambda _: None))


def searched(supernet: Supernet, schedule: Schedule = STILL, **options: Any) -> list[tuple[list[int], Tensor, Tensor]]:
    """Train; return for every step the two types that competed, and the probabilities before and after."""
    extra, turns = proxylessnas.extra(supernet.space), []
    extra[SLOT].data = torch.tensor([0.3, -0.2, 0.1])

    def pick(space: Space, rng: Random, progress: float) -> tuple[SubnetPath, ...]:
        step = proxylessnas.pick(space, rng, progress, extra, **{**TURNS, **options})
        turns.append([step[1].moves[SLOT], extra[SLOT].detach().softmax(0)])
        return step

    task = OneHot()
    train(
        supernet,
        task,
        pick,
        schedule,
        extra=extra,
        observer=Observer(lambda *_: turns[-1].append(extra[SLOT].softmax(0))),
    )
    return [(list(pair), before, after.detach()) for pair, before, after in turns]


# --- the laws of an architecture step ---------------------------------------------------------------------------------


def test_an_architecture_step_leaves_the_probabilities_of_the_other_types_as_they_are():
    moved = 0.0
    for pair, before, after in searched(contest({"poor": -1.0, "fair": 0.5, "good": 2.0})):
        (other,) = {0, 1, 2} - set(pair)
        assert float((after - before)[other].abs()) < 1e-6
        moved += float((after - before)[pair].abs().sum())
    assert moved > 0.01


def test_the_better_of_two_types_gains_what_the_other_loses():
    turns = searched(contest({"poor": -1.0, "fair": 0.5, "good": 2.0}))
    assert {tuple(sorted(pair)) for pair, *_ in turns} == {(0, 1), (0, 2), (1, 2)}
    for pair, before, after in turns:
        better, worse = max(pair), min(pair)
        assert after[better] > before[better]
        assert after[worse] < before[worse]
    best = turns[-1][2]
    assert best[2] > best[1]
    assert best[0] < turns[0][1][0]


@pytest.mark.parametrize("fast", [0, 2])
def test_latency_in_the_loss_pushes_to_the_faster_type(fast):
    cost = CostTable(0.0, {SLOT: {kind: 1.0 + abs(k - fast) for k, kind in enumerate(KINDS)}})
    for pair, before, after in searched(contest(dict.fromkeys(KINDS, 1.0)), latency=cost, weight=10.0):
        faster = min(pair, key=lambda k: abs(k - fast))
        assert after[faster] > before[faster]


def test_the_gradient_of_the_two_is_equation_4():
    """dL/d alpha_i = sum_j dL/dg_j p_j (delta_ij - p_i) over the two, with the outputs of both; none for the third."""
    supernet, weights = contest({"poor": -1.0, "fair": 0.5, "good": 2.0}), torch.tensor([-1.0, 0.5, 2.0])
    extra = proxylessnas.extra(supernet.space)
    extra[SLOT].data = torch.tensor([0.3, -0.2, 0.1])
    for seed in range(6):
        _, path = proxylessnas.pick(supernet.space, Random(seed), 0.5, extra, **TURNS)
        pair = sorted(path.moves[SLOT])
        labels = torch.arange(4)
        x = F.one_hot(labels, 4).float()
        (found,) = torch.autograd.grad(F.cross_entropy(supernet(path.arch, x, gates=path.gates), labels), extra[SLOT])
        gates = path.gates[SLOT].detach().requires_grad_()
        outputs = (gates * weights[pair]).sum() * x
        (slope,) = torch.autograd.grad(F.cross_entropy(outputs, labels), gates)
        p = extra[SLOT].detach()[pair].softmax(0)
        wanted = torch.zeros(3).index_put((torch.tensor(pair),), p * (slope - (slope * p).sum()))
        torch.testing.assert_close(found, wanted)


# --- taking turns -----------------------------------------------------------------------------------------------------


def test_the_weights_stay_while_the_types_search_and_the_types_while_the_weights_train():
    given = {"poor": -1.0, "fair": 0.5, "good": 2.0}
    for schedule, warmup, moved in ((STILL, 0.0, "logits"), (Schedule(((6, 0.1),)), 1.0, "weights")):
        supernet = contest(given)
        extra = proxylessnas.extra(supernet.space)
        train(supernet, OneHot(), partial(proxylessnas.pick, extra=extra, warmup=warmup), schedule, extra=extra)
        assert ([p.item() for p in supernet.union.parameters()] == list(given.values())) == (moved == "logits")
        assert bool(extra[SLOT].any()) == (moved == "logits")
        assert all(p.requires_grad and p.grad is None for p in supernet.union.parameters())


def test_the_types_search_on_calibration_images_and_on_no_other_held_out_ones():
    supernet, task = contest(dict.fromkeys(KINDS, 0.5)), OneHot()
    extra = proxylessnas.extra(supernet.space)
    train(supernet, task, partial(proxylessnas.pick, extra=extra, **TURNS), Schedule(((5, 0.1),)), extra=extra)
    assert set(task.asked) == {"calibration"}
    assert task.seen[::2] == [[n % 4 for n in range(k, k + 4)] for k in range(5)], "weights: the training images"
    assert task.seen[1::2] == [list(range(s, s + 4)) for s in (100, 104, 100, 104, 100)], "in turn, none of the rest"


def test_nothing_searches_before_the_warm_up_is_over_or_where_there_is_no_choice():
    extra = proxylessnas.extra(tiny.space())
    lengths = [len(proxylessnas.pick(tiny.space(), Random(0), k / 8, extra)) for k in range(8)]
    assert lengths == [1, 1, 2, 2, 2, 2, 2, 2]
    lone = tiny.space(types=("mbconv",))
    assert len(proxylessnas.pick(lone, Random(0), 0.5, proxylessnas.extra(lone))) == 1
    assert len(proxylessnas.pick(tiny.space(), Random(0), 0.5)) == 1, "without logits there is nothing to move"


def trained(**options: Any) -> tuple[Supernet, dict[str, nn.Parameter]]:
    schedule = Schedule(((6, 0.1),))
    supernet = Supernet(tiny.space())
    extra = proxylessnas.extra(supernet.space)
    train(supernet, tiny.task(), partial(proxylessnas.pick, extra=extra, **TURNS), schedule, extra=extra, **options)
    return supernet, extra


def same(one: tuple[Supernet, dict[str, nn.Parameter]], two: tuple[Supernet, dict[str, nn.Parameter]]) -> bool:
    return equal(one[0], two[0]) and all(torch.equal(one[1][slot], two[1][slot]) for slot in one[1])


def test_a_run_that_is_interrupted_resumes_to_the_same_weights_and_logits(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SECONDS", -1.0)

    def die(done: int, loss: float) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(checkpoint=CheckpointOptions(tmp_path / "c.safetensors"), observer=Observer(die))
    whole, steps = trained(), []
    kept = CheckpointOptions(tmp_path / "c.safetensors", resume=True)
    again = trained(checkpoint=kept, observer=Observer(lambda done, _: steps.append(done)))
    assert steps == [4, 5, 6]
    assert same(again, whole)
    assert any(bool(logits.any()) for logits in whole[1].values())


def test_the_held_out_images_of_a_step_divide_among_the_ranks_and_come_in_turn(monkeypatch):
    class Held:
        def held(self, split: str) -> tuple[Tensor, Tensor]:
            assert split == "calibration"
            return torch.arange(10), torch.arange(10) % 2

    def taken(step: int, images: int, ranks: int) -> list[list[int]]:
        monkeypatch.setattr(distributed, "world", lambda: ranks)
        found = []
        for rank in range(ranks):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            raw, labels = distributed.held(Held(), "calibration", step, images)
            assert torch.equal(labels, raw % 2)
            found.append(raw.tolist())
        return found

    assert [taken(step, 2, 2) for step in range(3)] == [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[0, 1], [2, 3]]]
    assert taken(1, 4, 1) == [[4, 5, 6, 7]]
    assert taken(5, 64, 1) == [list(range(10))]
    assert taken(5, 64, 3) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


# --- bad steps --------------------------------------------------------------------------------------------------------


class Spoilt(OneHot):
    """A task whose loss, or the loss's gradient alone, is not finite on the calibration images of some steps."""

    def __init__(self, turns: range, *, gradient: bool) -> None:
        super().__init__()
        self.turns, self.gradient = turns, gradient

    def loss(self, outputs: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Tensor:
        loss = super().loss(outputs, labels, teacher)
        if len(self.asked) - 1 not in self.turns or self.seen[-1][0] < 100:
            return loss
        return loss + (loss - loss.detach()) * float("inf") if self.gradient else loss * float("nan")


@pytest.mark.parametrize("gradient", [False, True])
def test_an_architecture_step_that_is_not_finite_moves_no_logit_and_the_next_one_goes_on(gradient):
    supernet = contest(dict.fromkeys(KINDS, 0.5))
    extra = proxylessnas.extra(supernet.space)
    said: list[str] = []
    kept: dict[int, Tensor] = {}
    pick = partial(proxylessnas.pick, extra=extra, **TURNS)
    keep = lambda done, _: kept.update({done: extra[SLOT].detach().clone()})  # noqa: E731
    task = Spoilt(range(2, 4), gradient=gradient)
    train(supernet, task, pick, Schedule(((8, 0.01),)), extra=extra, observer=Observer(keep, said.append))
    begun = [f"step {k} skipped: in the pass that searches, after the weights have moved, the " for k in (2, 3)]
    assert [line[: len(begun[0])] for line in said] == begun
    assert sorted(kept) == [1, 2, 5, 6, 7, 8]
    assert bool(torch.isfinite(extra[SLOT]).all())
    assert not torch.equal(kept[8], kept[2])
    assert float((kept[5] - kept[2]).abs().max()) < 0.01, "one step's worth"


def test_a_gradient_that_is_not_finite_does_not_stay_for_the_next_step():
    """The convex combination trains weights and logits in one pass; the gradients of a skipped step are dropped."""
    supernet = contest(dict.fromkeys(KINDS, 0.5))
    state = checkpoints.TrainingState(supernet, MaskedSGD({}), proxylessnas.extra(supernet.space))
    state.extra[SLOT].grad = torch.full((3,), float("nan"))
    with pytest.raises(Diverged, match="the gradient of the architecture parameters of slot is not finite"):
        state.check()
    state.clear()
    assert state.extra[SLOT].grad is None
