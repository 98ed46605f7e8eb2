"""Training gives the same bits in every run, survives a kill, and refuses a wrong checkpoint in one line."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hnas.files import read_tensors, write_tensors
from hnas.strategies import sandwich
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.training import checkpoint as checkpoints
from hnas.training.loop import CheckpointOptions, Observer, Schedule, TrainingOptions, train
from hnas.training.optimiser import MaskedSGD
from tests.conftest import LIMIT_S
from tests.hnas import tiny

ROOT = Path(__file__).resolve().parents[3]
STEPS = Schedule(((6, 0.1),))


def trained(schedule: Schedule = STEPS, *, seed: int = 0, checkpoint=None, resume=False, on_step=None) -> Supernet:
    supernet = Supernet(tiny.space(), seed=seed)
    options, kept = TrainingOptions(seed=seed), checkpoint and CheckpointOptions(checkpoint, resume=resume)
    train(supernet, tiny.task(), sandwich.pick, schedule, options, checkpoint=kept, observer=Observer(on_step))
    return supernet


def equal(a: Supernet, b: Supernet) -> bool:
    pairs = zip(a.union.named_parameters(), b.union.named_parameters(), strict=True)
    return all(n == m and torch.equal(p, q) for (n, p), (m, q) in pairs)


def stopped_at(step: int, checkpoint: Path, monkeypatch, schedule: Schedule = STEPS) -> None:
    """Run a training that writes a checkpoint after every step, and interrupt it after ``step`` steps."""
    monkeypatch.setattr(checkpoints, "SECONDS", -1.0)

    def die(done: int, loss: float) -> None:
        if done == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(schedule, checkpoint=checkpoint, on_step=die)


def one_line(error: pytest.ExceptionInfo[BaseException]) -> bool:
    return "\n" not in str(error.value)


# --- the same bits ----------------------------------------------------------------------------------------------------


def test_two_runs_give_equal_bits_and_another_seed_does_not():
    first = trained()
    torch.manual_seed(99)  # nothing may depend on torch's own generator
    assert equal(first, trained())
    assert not equal(first, trained(seed=1))


@pytest.mark.parametrize("schedule", [Schedule(((40, 0.1),)), Schedule(((40, 0.003),), optimiser="adam")])
def test_training_learns(schedule):
    supernet = trained(schedule)
    assert Study(supernet, tiny.task()).accuracy(supernet.space.largest, "test") > 0.9


@pytest.mark.parametrize("schedule", [STEPS, Schedule(((6, 0.01),), optimiser="adam")])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, monkeypatch, schedule):
    checkpoint = tmp_path / "checkpoint.safetensors"
    stopped_at(4, checkpoint, monkeypatch, schedule)
    assert read_tensors(checkpoint)[1]["step"] == "3"
    steps = []
    resumed = trained(schedule, checkpoint=checkpoint, resume=True, on_step=lambda done, loss: steps.append(done))
    assert steps == [4, 5, 6]
    assert equal(resumed, trained(schedule))


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    checkpoint = tmp_path / "checkpoint.safetensors"
    code = f"""
import os, signal, torch
from pathlib import Path
from hnas.training import checkpoint
from tests.hnas.training import test_training
torch.set_num_threads(1)
checkpoint.SECONDS = -1.0
die = lambda done, loss: done == 3 and os.kill(os.getpid(), signal.SIGKILL)
test_training.trained(checkpoint=Path({str(checkpoint)!r}), on_step=die)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=LIMIT_S, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert equal(trained(checkpoint=checkpoint, resume=True), trained())


def test_without_a_checkpoint_resuming_starts_at_the_beginning(tmp_path):
    assert equal(trained(checkpoint=tmp_path / "checkpoint.safetensors", resume=True), trained())


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path, monkeypatch):
    checkpoint = tmp_path / "checkpoint.safetensors"
    stopped_at(3, checkpoint, monkeypatch)
    (tmp_path / f".{checkpoint.name}.1").write_bytes(b"half a file")
    assert equal(trained(checkpoint=checkpoint, resume=True), trained())


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["seed", "schedule", "data", "space"])
def test_a_checkpoint_of_another_run_is_refused(tmp_path, monkeypatch, change):
    checkpoint = tmp_path / "checkpoint.safetensors"
    stopped_at(2, checkpoint, monkeypatch)
    task, space = tiny.task(), tiny.space()
    if change == "data":
        task.splits["train"] = tiny.data(64, 9)
    if change == "space":
        space = space.without("resolution", 8)  # the same weights, another sampler
    schedule = Schedule(((7, 0.1),)) if change == "schedule" else STEPS
    options, kept = TrainingOptions(seed=int(change == "seed")), CheckpointOptions(checkpoint, resume=True)
    with pytest.raises(ValueError, match=r"belongs to another run.*choose another --out") as caught:
        train(Supernet(space), task, sandwich.pick, schedule, options, checkpoint=kept)
    assert one_line(caught)


def test_a_checkpoint_with_other_tensors_is_refused(tmp_path, monkeypatch):
    checkpoint = tmp_path / "checkpoint.safetensors"
    stopped_at(2, checkpoint, monkeypatch)
    tensors, metadata = read_tensors(checkpoint)
    tensors.popitem()
    write_tensors(checkpoint, tensors, metadata)
    with pytest.raises(ValueError, match="holds other tensors than this space has"):
        trained(checkpoint=checkpoint, resume=True)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_checkpoint_is_one_line(tmp_path, monkeypatch, keep):
    checkpoint = tmp_path / "checkpoint.safetensors"
    stopped_at(2, checkpoint, monkeypatch)
    checkpoint.write_bytes(checkpoint.read_bytes()[:keep])
    with pytest.raises(ValueError, match="is not a complete safetensors file") as caught:
        trained(checkpoint=checkpoint, resume=True)
    assert one_line(caught)


class Broken:
    """A task whose loss is not finite in some steps, for the teacher or for the students."""

    def __init__(self, student: bool, steps: range = range(100)) -> None:
        self.task, self.student, self.steps, self.step = tiny.task(), student, steps, 0

    def __getattr__(self, name: str):
        return getattr(self.task, name)

    def batch(self, step: int):
        self.step = step
        return self.task.batch(step)

    def loss(self, outputs: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Tensor:
        loss = self.task.loss(outputs, labels, teacher)
        broken = (teacher is not None) == self.student and self.step in self.steps
        return loss * float("inf") if broken else loss


@pytest.mark.parametrize("student", [False, True], ids=["teacher", "student"])
def test_a_loss_that_is_not_finite_stops_in_one_line(student):
    supernet = Supernet(tiny.space())
    with pytest.raises(RuntimeError, match="the loss is inf at step 5, as in the 5 steps before; lower the") as caught:
        train(supernet, Broken(student), sandwich.pick, STEPS)
    assert one_line(caught)
    assert equal(supernet, Supernet(tiny.space()))


def test_a_step_that_is_not_finite_is_skipped_and_said():
    said: list[str] = []
    supernet = Supernet(tiny.space())
    train(supernet, Broken(True, range(2, 4)), sandwich.pick, STEPS, observer=Observer(on_message=said.append))
    assert said == [f"step {step} skipped: the loss is inf" for step in (2, 3)]
    assert not equal(supernet, Supernet(tiny.space()))
    assert all(bool(torch.isfinite(p).all()) for p in supernet.parameters())


def test_a_loss_that_jumps_and_stays_up_brings_the_last_good_state_back(monkeypatch):
    monkeypatch.setattr(checkpoints, "GOOD", 10)
    said: list[str] = []
    supernet = Supernet(tiny.space())
    kept: list[dict[str, Tensor]] = []

    def ruin(step: int, loss: float) -> None:
        if step == 20:
            kept.append({name: p.detach().clone() for name, p in supernet.union.named_parameters()})
            with torch.no_grad():
                supernet.union.classifier.bias.copy_(torch.tensor([40.0, -40.0, 40.0, -40.0]))
        if said and len(kept) == 1:
            kept.append({})
            assert all(torch.equal(p, kept[0][name]) for name, p in supernet.union.named_parameters())

    train(supernet, tiny.task(), sandwich.pick, Schedule(((40, 1e-6),)), observer=Observer(ruin, said.append))
    assert len(said) == 1
    assert "the last good state is restored: the loss has jumped from" in said[0]
    assert len(kept) == 2


def test_the_schedule_warms_up_peaks_and_ends():
    schedule = Schedule(((100, 0.2),), warmup=0.1, final=0.01)
    rates = [schedule.at(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.02 * k for k in range(1, 11)])
    assert max(rates) == pytest.approx(0.2)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.2 * 0.01, rel=0.1)


def test_a_restart_begins_a_cycle_from_its_own_rate():
    schedule = Schedule(((10, 0.2), (5, 0.1)), warmup=0.1)
    assert schedule.steps == 15
    assert [step for step in range(15) if schedule.begins(step)] == [0, 10]
    assert schedule.at(9) < 0.02
    assert schedule.at(10) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="ends after 15 steps"):
        schedule.at(15)


def test_moments_begin_at_zero_in_every_cycle(monkeypatch):
    begun, done = [], []
    forget = MaskedSGD.reset

    def reset(self: MaskedSGD) -> None:
        forget(self)
        assert not any(bool(moment.any()) for moment in self.moments.values())
        begun.append(len(done))

    monkeypatch.setattr(MaskedSGD, "reset", reset)
    supernet = Supernet(tiny.space())
    schedule, observer = Schedule(((2, 0.1), (2, 0.1))), Observer(lambda step, _: done.append(step))
    train(supernet, tiny.task(), sandwich.pick, schedule, observer=observer)
    assert begun == [0, 2]
