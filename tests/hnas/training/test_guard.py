"""The guard restores a good state after a jump, leaves a noisy run alone, and gives up without losing the state."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from random import Random

import pytest
import torch
from torch import Tensor, nn

from hnas.files import read_tensors
from hnas.strategies import spos, spos_then_hybrid
from hnas.supernet import Supernet
from hnas.training import checkpoint as checkpoints
from hnas.training.checkpoint import DivergenceGuard, TrainingState
from hnas.training.loop import CheckpointOptions, Observer, Schedule, train
from hnas.training.optimiser import Diverged, MaskedSGD
from tests.hnas import tiny
from tests.hnas.training.test_training import Broken, equal

CHANCE = math.log(10)


class One:
    """A state of one weight: 0 is sound, 1 is damaged."""

    def __init__(self) -> None:
        self.x = torch.zeros(1)

    def tensors(self) -> dict[str, Tensor]:
        return {"x": self.x}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.x.copy_(tensors["x"])


class Run:
    """A run with a sound loss. One step damages the weight; the loss is ``ruined`` until the weight is restored."""

    def __init__(self, sound: Callable[[int], float], ruined: float = 3.0, at: int = -1) -> None:
        self.sound, self.ruined, self.at = sound, ruined, at
        self.state = One()
        self.said: list[str] = []
        self.guard = DivergenceGuard(self.state, self.said.append)
        self.back: list[int] = []

    def steps(self, begin: int, end: int) -> Run:
        for step in range(begin, end):
            if step == self.at:
                self.state.x.fill_(1.0)
            lines = len(self.said)
            self.guard.record_loss(step, self.ruined if bool(self.state.x) else self.sound(step))
            self.back += [step] * (len(self.said) - lines)
        return self

    def sane(self) -> bool:
        return not bool(self.state.x) and not any(bool(t) for t in self.guard.tensors().values())


def falling(step: int) -> float:
    """Return a loss that falls from chance level to 1, as in training on ten classes."""
    return 1.0 + (CHANCE - 1.0) * math.exp(-step / 30)


def flat(step: int) -> float:
    return 0.5


# --- a state that is ruined never counts as good ----------------------------------------------------------------------


def test_a_collapse_to_chance_is_seen():
    run = Run(falling, CHANCE, at=250).steps(0, 600)
    assert run.said == ["after step 257 the last good state is restored: the loss has jumped from 1.01 to 2.3"]
    assert run.sane()


@pytest.mark.parametrize("at", range(190, 201))
def test_a_jump_just_before_a_state_is_kept_leads_to_the_one_before(at):
    run = Run(flat, at=at).steps(0, 600)
    assert run.sane()
    assert run.back[-1] < 220
    assert len(run.back) == (2 if 196 <= at <= 199 else 1), "the ruined one is tried where it was kept"


@pytest.mark.parametrize("at", [8, 60, 92, 99])
def test_a_jump_before_the_first_state_is_kept_is_seen(at):
    run = Run(flat, 50.0, at=at).steps(0, 300)
    assert run.sane()
    assert run.back[0] == at + 7


def test_what_is_neither_calm_nor_a_jump_is_not_kept():
    run = Run(lambda step: 3.0 if step > 150 and step % 4 else 0.5).steps(0, 400)
    assert run.said == []
    assert list(run.guard.kept) == [0, 100]


def test_at_most_two_states_are_kept():
    guard = Run(flat).steps(0, 1000).guard
    assert list(guard.kept) == [900, 1000]
    assert sorted(guard.tensors()) == ["good/1000/x", "good/900/x"]


def test_three_steps_that_are_not_finite_right_after_a_ruined_state_was_kept_lead_to_the_one_before():
    run = Run(flat, 0.5, at=199).steps(0, 200)
    for step in range(200, 206):
        run.guard.record_skip(step, "the loss is nan")
    assert run.sane()
    run.guard.record_skip(206, "the loss is nan")
    run.guard.record_skip(207, "the loss is nan")
    with pytest.raises(Diverged, match="the loss is nan at step 208, as in the 8 steps before"):
        run.guard.record_skip(208, "the loss is nan")


@pytest.mark.parametrize("cut", [3, 12, 150, 198, 200, 203, 204, 206, 212, 230])
def test_a_guard_that_is_resumed_does_what_an_unbroken_one_does(cut):
    whole = Run(falling, at=197).steps(0, 500)
    run = Run(falling, at=197).steps(0, cut)
    told, kept = json.dumps(run.guard.to_json()), {name: t.clone() for name, t in run.guard.tensors().items()}
    run.guard = DivergenceGuard(run.state, run.said.append)
    run.guard.from_json(json.loads(told), kept)
    run.steps(cut, 500)
    assert run.said == whole.said
    assert len(run.said) == 2
    assert run.guard.to_json() == whole.guard.to_json()


# --- no false alarm ---------------------------------------------------------------------------------------------------


def noisy(rng: Random, floor: float, chance: float) -> Iterator[float]:
    """Yield losses of single paths in cycles: each step has another subnet and batch; a restart raises them."""
    for cycle in range(3):
        top = chance if cycle == 0 else max(1.1 * floor, min(0.5 * chance, floor + 0.5))
        for step in range(4000):
            warm = min(1.0, step / 100) if cycle else 1.0
            mean = floor + (top - floor) * warm * math.exp(-step / 800)
            yield min(mean * math.exp(rng.gauss(0, 0.3)), 1.3 * chance)


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("share", [0.02, 0.2, 0.45, 0.6, 0.9])
def test_noisy_losses_of_single_paths_and_warm_restarts_raise_no_alarm(classes, share):
    chance = math.log(classes)
    said: list[str] = []
    guard = DivergenceGuard(One(), said.append)
    for step, loss in enumerate(noisy(Random(0), share * chance, chance)):
        guard.record_loss(step, loss)
    assert said == []
    assert list(guard.kept)[-1] > 11_000


def test_a_switch_to_a_mixture_of_types_has_a_level_of_its_own():
    run = Run(falling).steps(0, 300)
    for step in range(300, 500):
        run.guard.record_loss(step, CHANCE * math.exp(-(step - 300) / 100), ["mixture"])
    assert run.said == []
    assert list(run.guard.kept) == [400, 500]


def test_kinds_that_take_turns_are_guarded_as_well():
    run = Run(flat)
    for step in range(258):
        run.guard.record_loss(step, 0.5 if step < 250 else 3.0, [step % 2])
    assert list(run.guard.kept) == [100, 200]
    assert "the loss has jumped from 0.5 to 3" in run.said[0]


@pytest.mark.parametrize("pick", [spos.pick, spos_then_hybrid.pick])
def test_training_single_paths_with_a_restart_raises_no_alarm(pick, monkeypatch):
    monkeypatch.setattr(checkpoints, "GOOD", 10)
    said: list[str] = []
    train(
        Supernet(tiny.space()),
        tiny.task(),
        pick,
        Schedule(((40, 0.2), (20, 0.2))),
        observer=Observer(on_message=said.append),
    )
    assert said == []


# --- giving up --------------------------------------------------------------------------------------------------------


def test_bad_steps_count_within_a_span_and_not_over_a_whole_run():
    run = Run(flat)
    for step in range(0, 150_000, 50):
        run.guard.record_skip(step, "the loss is nan")
        run.guard.record_loss(step + 1, 0.5)
    run.guard.finish(150_000)
    for step in range(152_000, 152_040, 2):
        run.guard.record_skip(step, "the loss is nan")
        run.guard.record_loss(step + 1, 0.5)
    with pytest.raises(Diverged, match="the loss is nan at step 152040, after 20 others of the last 1000 that went"):
        run.guard.record_skip(152_040, "the loss is nan")


class Spoilt(Broken):
    """A task whose loss is NaN in some steps, for teacher and students."""

    def __init__(self, steps: tuple[int, ...]) -> None:
        super().__init__(student=False, steps=steps)

    def loss(self, outputs: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Tensor:
        return self.task.loss(outputs, labels, teacher) * (float("nan") if self.step in self.steps else 1.0)


def test_who_gives_up_leaves_the_last_good_state_and_what_is_mended_goes_on_from_there(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "GOOD", 10)
    monkeypatch.setattr(checkpoints, "SKIPS", 2)
    file, schedule = tmp_path / "checkpoint.safetensors", Schedule(((20, 0.1),))
    good: dict[str, Tensor] = {}
    supernet, done = Supernet(tiny.space()), []

    def keep(step: int, loss: float) -> None:
        if step == 10:
            good.update({f"weights/{name}": p.detach().clone() for name, p in supernet.union.named_parameters()})

    with pytest.raises(Diverged, match="the loss is nan at step 16, after 2 others") as caught:
        train(
            supernet,
            Spoilt((12, 14, 16)),
            spos.pick,
            schedule,
            checkpoint=CheckpointOptions(file),
            observer=Observer(keep),
        )
    assert "\n" not in str(caught.value)
    tensors, record = read_tensors(file)
    assert record["step"] == "10"
    assert all(torch.equal(tensors[name], weight) for name, weight in good.items())
    kept, observer = CheckpointOptions(file, resume=True), Observer(lambda k, _: done.append(k))
    train(supernet, tiny.task(), spos.pick, schedule, checkpoint=kept, observer=observer)
    assert done == list(range(11, 21))
    whole = Supernet(tiny.space())
    train(whole, tiny.task(), spos.pick, schedule)
    assert equal(supernet, whole)


def test_what_is_not_mended_fails_again(tmp_path):
    file = tmp_path / "checkpoint.safetensors"
    for _ in range(2):
        with pytest.raises(Diverged, match="the loss is nan at step 5, as in the 5 steps before"):
            train(
                Supernet(tiny.space()),
                Spoilt(tuple(range(6))),
                spos.pick,
                Schedule(((6, 0.1),)),
                checkpoint=CheckpointOptions(file, resume=True),
            )


# --- Adam -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("among", [None, {"slot": [0, 2]}], ids=["all", "a pair"])
def test_the_first_steps_of_architecture_parameters_are_those_of_a_fresh_adam(among):
    ours, theirs = (nn.Parameter(torch.tensor([0.5, -1.0, 0.25])) for _ in range(2))
    state = TrainingState(Supernet(tiny.space()), MaskedSGD({}), {"slot": ours})
    adam = torch.optim.Adam([theirs], lr=3e-3, betas=(0.0 if among else 0.5, 0.999))
    for gradient in ([0.3, 0.0, -0.2], [0.1, 0.0, 0.4]):
        for parameter in (ours, theirs):
            parameter.grad = torch.tensor(gradient)
        state.step_extra(among)
        adam.step()
    if among is None:
        assert torch.equal(ours, theirs)
    else:  # up to the shift that both share
        moved = [float((p[0] - p[2]).detach()) for p in (ours, theirs)]
        assert moved[0] == pytest.approx(moved[1], abs=1e-6)
        assert moved[0] != pytest.approx(0.25, abs=1e-4)
