"""The length of a training fits into the given minutes, and a plan says what to expect."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from hnas.recipes import Recipe, length
from hnas.recipes import load as load_recipe
from hnas.recipes.length import Timing, TrainingPlan, fit
from hnas.recipes.run import RunOptions, run_recipe
from hnas.space import Arch
from hnas.strategies import sandwich
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.training.folder import load_supernet
from tests.hnas import tiny
from tests.hnas.recipes.test_run import recipe
from tests.hnas.training.test_training import equal

PER_EPOCH = 4  # steps of the data in ``source``
LONGEST = length._BASELINE_SECONDS


@pytest.fixture(autouse=True)
def timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes one second on every machine, and the plain CNN gets one step."""
    monkeypatch.setattr("hnas.recipes.run.time_step", lambda *_: 1.0)
    monkeypatch.setattr(length, "_BASELINE_SECONDS", 0.0)


@pytest.mark.parametrize(
    ("minutes", "resolutions", "short", "epochs"),
    [
        (60, [48, 64], False, 57.6),  # case 1: all epochs of the recipe
        (25, [56, 64], True, 48.0),  # case 2: in the smaller space
        (7, [40, 48], True, 23.9),  # case 3
        (1, [32], True, 7.68),  # nothing smaller is left
        (1e4, [48, 64], False, 100.0),  # never more
    ],
)
def test_space_resolution_and_epochs_fit(minutes: float, resolutions: list[int], short: bool, epochs: float) -> None:
    """The recipe is the shipped one for photographs."""
    given = load_recipe("images")

    def timed(each: Recipe) -> Timing:
        area = max(each.space["resolutions"]) ** 2 / 64**2
        return Timing(float(area * (0.5 if "options" in each.train else 1.0)))

    chosen, found, timing = fit(given, SimpleNamespace(steps_per_epoch=50), minutes, timed)
    assert chosen.space["resolutions"] == resolutions
    smaller = given.short if short else {}
    assert {**chosen.space, "resolutions": None} == {**given.space, **smaller.get("space", {}), "resolutions": None}
    assert chosen.train == {**given.train, **smaller.get("train", {})}
    assert found == pytest.approx(epochs, rel=0.02)
    assert timing == timed(chosen)


def test_resolutions_that_short_trainings_alone_have_are_reduced() -> None:
    given = replace(load_recipe("images"), short={"space": {"resolutions": [64]}})
    given.space.pop("resolutions")

    def timed(each: Recipe) -> Timing:
        return Timing(float(max(each.space.get("resolutions", [64])) ** 2 / 64**2))

    chosen, _, _ = fit(given, SimpleNamespace(steps_per_epoch=50), 1, timed)
    assert chosen.space["resolutions"] == [32]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[short.data]\nsize = 3", r"recipe x: \[short\] has no key 'data'; known: space, train"),
        ("[short]\nspace = 3", r"recipe x: short.space is no table of keys"),
        (
            "[short.train]\nbatch = 3",
            r"recipe x: short.train cannot replace batch, which is read before; give \[train\]",
        ),
    ],
)
def test_a_section_for_short_trainings_that_makes_no_sense_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.toml").write_text(f'[space]\nname = "hybrid_vision"\n{text}\n')
    with pytest.raises(ValueError, match=message):
        load_recipe(str(tmp_path / "x.toml"))


def test_the_space_that_was_chosen_is_kept(tmp_path: Path, source: Path) -> None:
    """Six steps fit, the recipe has more: the run takes the smaller space, also where it is continued."""
    out, options = tmp_path / "out", RunOptions(minutes=6 / 48)
    given = replace(recipe(epochs=3), short={"space": {"types": ["mbconv"]}})
    interrupt_after_one_step(source, out, options, given)
    record = run_recipe(given, source, out, replace(options, resume=True))
    assert record["recipe"]["space"]["types"] == ["mbconv"]
    assert load_supernet(out)[0].space.arguments["types"] == ["mbconv"]
    whole = run_recipe(given, source, tmp_path / "whole", RunOptions(minutes=12 / 48))
    assert whole["recipe"]["space"] == recipe().space


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf")])
def test_minutes_that_are_no_time_are_one_line(tmp_path: Path, source: Path, minutes: float) -> None:
    with pytest.raises(ValueError, match=r"minutes is .*, expected a finite number above 0"):
        run_recipe(recipe(), source, tmp_path / "out", RunOptions(minutes=minutes))


def test_minutes_and_epochs_exclude_each_other(tmp_path: Path, source: Path) -> None:
    with pytest.raises(ValueError, match="both say how long to train; give one of them"):
        run_recipe(recipe(), source, tmp_path / "out", RunOptions(minutes=1, epochs=1))


def test_a_plan_warns_of_few_images_and_short_training() -> None:
    plan = TrainingPlan({"train": 60, "test": 9}, 3, 64, 4, 0.5, 1.0, 300, {"a coin": 0.5})
    assert "60 train, 9 test; 3 classes" in plan.lines()[0]
    assert [line.split()[1] for line in plan.lines() if line.startswith("warning")] == ["60", "0.5", "9"]
    assert TrainingPlan({"train": 900, "test": 100}, 3, 64, 40, 9, 1.0, 300, {}).warnings() == []


def test_a_run_of_minutes_keeps_its_length_when_it_resumes(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, said = tmp_path / "out", []
    options = RunOptions(minutes=6 / 48, report=True)  # six steps in 80 % of the time
    record = run_recipe(recipe(), source, out, options, on_message=said.append)
    assert [line.split()[0] for line in said[:2]] == ["timing", "images"]
    assert record["steps"] == 6
    assert record["epochs"] == json.loads((out / "length.json").read_text())["epochs"] == 6 / PER_EPOCH
    monkeypatch.setattr("hnas.recipes.run.time_step", lambda *_: 2.0)
    again = run_recipe(recipe(), source, out, RunOptions(minutes=6 / 48, report=True, resume=True))
    assert again["steps"] == 6
    with pytest.raises(ValueError, match="holds the supernet of a run with other epochs"):
        run_recipe(recipe(), source, out, RunOptions(minutes=1, resume=True))


def interrupt_after_one_step(source: Path, out: Path, options: RunOptions, given: Recipe | None = None) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_recipe(given or recipe(), source, out, options, on_step=lambda *_: os.kill(os.getpid(), signal.SIGINT))


def test_a_refused_resume_leaves_the_run_as_it_was(tmp_path: Path, source: Path) -> None:
    out, options = tmp_path / "out", RunOptions(minutes=6 / 48)
    interrupt_after_one_step(source, out, options)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(ValueError, match=r"holds a training of 0.125 minutes, got 1; continue it with --minutes 0.125"):
        run_recipe(recipe(), source, out, RunOptions(minutes=1, resume=True))
    with pytest.raises(ValueError, match="holds a training with another recipe; choose another --out"):
        run_recipe(recipe(rate=0.2), source, out, RunOptions(minutes=6 / 48, resume=True))
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert run_recipe(recipe(), source, out, RunOptions(minutes=6 / 48, resume=True))["steps"] == 6


@pytest.mark.parametrize("other", [{"seed": 1}, {"epochs": 3}, {"alone": "smallest"}, {"epochs": None, "minutes": 1}])
def test_another_run_is_refused_before_it_opens_its_data(
    tmp_path: Path, source: Path, other: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    interrupt_after_one_step(source, out, RunOptions(epochs=2))
    monkeypatch.setattr("hnas.recipes.run.open_task_of", lambda *_: pytest.fail("the data were opened"))
    with pytest.raises(ValueError, match=rf"belongs to another run \(other {min(other)}\); choose another --out"):
        run_recipe(recipe(), source, out, replace(RunOptions(epochs=2, resume=True), **other))
    assert not (out / "length.json").exists()


def test_a_step_is_timed_once_and_the_plan_is_made_once(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For another run in the same folder, killed before its first checkpoint, the plan is made anew."""
    out, options, calls = tmp_path / "out", RunOptions(minutes=6 / 48, report=True), []
    plain = length.train_plain_cnn
    monkeypatch.setattr("hnas.recipes.run.time_step", lambda *_: calls.append("step") or 1.0)
    monkeypatch.setattr(length, "train_plain_cnn", lambda *a, **b: calls.append("CNN") or plain(*a, **b))
    interrupt_after_one_step(source, out, options)
    tried = calls.count("step")  # the recipe's options, and fewer paths; for one resolution or more
    assert calls == ["step"] * tried + ["CNN"]
    said: list[str] = []
    run_recipe(recipe(), source, out, replace(options, resume=True), on_message=said.append)
    assert calls == ["step"] * tried + ["CNN"]
    assert said[2].startswith("predicted 0.1 minutes")
    monkeypatch.setattr("hnas.recipes.run._Run.run", lambda *_: {})
    for seed, made in ((0, ["step", "CNN"]), (0, []), (1, ["step", "CNN"])):
        calls.clear()
        run_recipe(recipe(), source, tmp_path / "killed", RunOptions(epochs=1, seed=seed, report=True))
        assert calls == made


def test_ranks_agree_on_the_length_and_the_first_alone_writes_it(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two ranks, whose clock says that a step takes 1000 seconds."""
    steps, out = [], tmp_path / "out"
    out.mkdir()

    def agreed(make: Callable[[], object]) -> object:
        return 1.0 if isinstance(make(), float) else make()

    monkeypatch.setattr("hnas.distributed.rank", lambda: 1)
    monkeypatch.setattr("hnas.distributed.agreed", agreed)
    monkeypatch.setattr("hnas.recipes.run.time_step", lambda *_: 1000.0)
    monkeypatch.setattr(length, "train_plain_cnn", lambda *_, **__: pytest.fail("the second rank makes a plan"))
    options = RunOptions(minutes=6 / 48, report=True)
    assert run_recipe(recipe(), source, out, options, on_step=lambda done, of, _: steps.append((done, of))) == {}
    assert steps == [(k, 6) for k in range(1, 7)]
    assert not list(out.iterdir())


@pytest.mark.parametrize("alone", [None, "smallest"])
@pytest.mark.parametrize("report", [True, False])
def test_the_test_images_are_evaluated_once_for_a_subnet(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, report: bool, alone: str | None
) -> None:
    evaluated, plain = [], Study.outputs

    def outputs(study: Study, arch: Arch, split: str) -> object:
        evaluated.extend([arch] if split == "test" else [])
        return plain(study, arch, split)

    monkeypatch.setattr(Study, "outputs", outputs)
    run_recipe(recipe(), source, tmp_path / "out", RunOptions(report=report, alone=alone))
    assert len(evaluated) == len(set(evaluated)) == (1 if alone else 5 if report else 2)


def test_a_report_has_the_plan_the_epochs_and_the_end(tmp_path: Path, source: Path) -> None:
    out, said = tmp_path / "out", []
    record = run_recipe(recipe(), source, out, RunOptions(epochs=2, report=True), on_message=said.append)
    plan = ["images", "training", "predicted", "baseline", "baseline"]
    assert [line.split()[0] for line in said[:6]] == ["timing", *plan]
    assert f"at most {LONGEST:.0f} s of training of a plain CNN" in said[0]
    assert [line.split(":")[0] for line in said if line.startswith("epoch")] == ["epoch 1 of 2", "epoch 2 of 2"]
    assert said[-1].endswith("0.0 min left")
    records = [json.loads(line) for line in (out / "training.jsonl").read_text().splitlines()]
    assert [each["step"] for each in records] == [PER_EPOCH, 2 * PER_EPOCH]
    assert (out / "training.csv").read_text().splitlines()[0] == "epoch,step,loss,smallest,largest,seconds"
    assert list(record["subnets"]) == ["largest", "random 1", "random 2", "random 3", "smallest"]
    assert record["subnets"]["largest"]["accuracy"] == record["accuracy"]["largest"]
    assert record["subnets"]["largest"]["macs"] > record["subnets"]["smallest"]["macs"]
    assert all(count > 0 and true != taken for true, taken, count in record["confusion"])


def test_a_report_changes_no_weight(tmp_path: Path, source: Path) -> None:
    run_recipe(recipe(), source, tmp_path / "plain")
    run_recipe(recipe(), source, tmp_path / "told", RunOptions(report=True))
    assert equal(load_supernet(tmp_path / "plain")[0], load_supernet(tmp_path / "told")[0])


def test_ctrl_c_saves_and_the_rest_is_counted_right(tmp_path: Path, source: Path) -> None:
    """The interrupted step is finished and saved, long before a checkpoint is due."""
    run_recipe(recipe(), source, tmp_path / "whole", RunOptions(epochs=2, report=True))
    out, steps = tmp_path / "out", []

    def interrupt(done: int, of: int, loss: float) -> None:
        steps.append(done)
        if done == PER_EPOCH + 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe(), source, out, RunOptions(epochs=2, report=True), on_step=interrupt)
    assert steps == [*range(1, PER_EPOCH + 2)]
    steps.clear()
    run_recipe(
        recipe(),
        source,
        out,
        RunOptions(epochs=2, report=True, resume=True),
        on_step=lambda done, of, loss: steps.append(done),
    )
    assert steps == [*range(PER_EPOCH + 2, 2 * PER_EPOCH + 1)]
    assert equal(load_supernet(tmp_path / "whole")[0], load_supernet(out)[0])
    records = [json.loads(line) for line in (out / "training.jsonl").read_text().splitlines()]
    assert [each["step"] for each in records] == [PER_EPOCH, 2 * PER_EPOCH]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_step_is_timed_without_a_change_of_weights() -> None:
    supernet = Supernet(tiny.space())
    before = {name: p.detach().clone() for name, p in supernet.union.named_parameters()}
    assert length.time_step(supernet, tiny.task(), sandwich.pick) > 0
    assert all((p - before[name]).abs().max() < 1e-6 for name, p in supernet.union.named_parameters())
