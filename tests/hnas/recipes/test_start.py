"""A run starts from pretrained weights where the recipe names them and they are installed."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hnas import spaces
from hnas.data.images import Preprocessing
from hnas.deployment.source import open_source
from hnas.recipes import Recipe
from hnas.recipes import load as load_recipe
from hnas.recipes.parts import make_space, open_task_of
from hnas.recipes.run import RunOptions, run_recipe
from hnas.recipes.schema import decode_recipe
from hnas.recipes.start import begin, fit_classifier, make_started, prepared_for, time_fitting
from hnas.space import Arch
from hnas.study import Study
from hnas.supernet import Stats, Supernet
from hnas.tasks.classification import Classification
from hnas.training.folder import load_supernet
from hnas.training.pretrained import NoWeights
from hnas.training.teacher import fine_tune, taught
from tests.hnas import photos, standin_timm, tiny
from tests.hnas.recipes.test_run import recipe
from tests.hnas.training.test_training import equal


def coloured(images: int) -> Classification:
    """Return a task with so many training images, and 64 in every other split."""
    counts = {"train": images, "calibration": 64, "search": 64, "test": 64}
    splits = {split: tiny.data(count, k) for k, (split, count) in enumerate(counts.items())}
    wide = {split: replace(each, images=each.images.repeat(3, -1)) for split, each in splits.items()}
    return Classification(wide, Preprocessing((12, 12), (12, 12), (0.3,) * 3, (0.2,) * 3), batch_size=16, shift=1)


TABLE = {"name": "tiny", "space": {"resolutions": [12, 16]}, "train": {"rate": 0.01, "options": {"paths": 1}}}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setitem(sys.modules, "timm", standin_timm.make())
    plain = recipe()
    space = {**plain.space, "channels": 3}
    return replace(plain, space=space, data={"size": 16, "channels": 3}, pretrained=TABLE)


def test_a_run_from_pretrained_weights_says_which_and_keeps_it_in_the_manifest(tmp_path: Path, started: Recipe) -> None:
    data, said = photos.write(tmp_path / "photos"), []
    record = run_recipe(started, data, tmp_path / "out", on_message=said.append)
    assert "starting from tiny: timm, x/tiny, licence mit" in said
    assert record["recipe"]["pretrained"]["name"] == "tiny"
    supernet, _ = load_supernet(tmp_path / "out")
    assert supernet.space.name == "inverted_residuals"
    assert record["task"]["preprocessing"]["mean"] == [0.4, 0.5, 0.6]
    assert "weights of tiny (timm, x/tiny; sha256 " in open_source(tmp_path / "out", data).licence
    assert "their licence: mit." in open_source(tmp_path / "out", data).licence
    again = run_recipe(started, data, tmp_path / "out", RunOptions(resume=True))
    assert {key: again[key] for key in record} == record


def test_one_subnet_alone_starts_from_its_slices(tmp_path: Path, started: Recipe) -> None:
    data = photos.write(tmp_path / "photos")
    record = run_recipe(started, data, tmp_path / "out", RunOptions(epochs=0.01, alone="smallest"))
    assert record["steps"] == 1
    alone, _ = load_supernet(tmp_path / "out")
    names = dict(alone.union.named_parameters())
    assert names["stages.1.blocks.0.expand.conv.weight"].shape[0] == 32


def test_the_classifier_is_fitted_before_training_and_once(tmp_path: Path, started: Recipe) -> None:
    """Nothing else changes, it tells the classes apart, and a run that is continued does not fit it again."""
    data = photos.write(tmp_path / "photos")
    recipe, found, _ = begin(started, None, scratch=False)
    task = prepared_for(open_task_of(decode_recipe(recipe), data), found, 0)
    space = make_space(recipe, task)
    study = Study(make_started(space, 0, "x", found, space), task)
    before, guessed = study.snapshot(), study.accuracy(space.largest, "train")
    said: list[str] = []
    fit_classifier(study, said.append)
    count = len(task.splits["train"])
    assert said == [f"fitting the classifier to {count} of {count} training images"]
    after = study.snapshot()
    assert {name for name in after if not after[name].equal(before[name])} == {"classifier.weight", "classifier.bias"}
    assert study.accuracy(space.largest, "train") > guessed + 0.2


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_run_fits_the_classifier_once(
    tmp_path: Path, started: Recipe, monkeypatch: pytest.MonkeyPatch, interrupted: bool
) -> None:
    data, fitted = photos.write(tmp_path / "photos"), []
    monkeypatch.setattr("hnas.recipes.run.fit_classifier", lambda *a: fitted.append(a) or fit_classifier(*a))
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            run_recipe(started, data, tmp_path / "out", on_step=lambda *_: os.kill(os.getpid(), signal.SIGINT))
    run_recipe(started, data, tmp_path / "out", RunOptions(resume=interrupted))
    assert len(fitted) == 1
    run_recipe(started, data, tmp_path / "scratch", RunOptions(scratch=True))
    assert len(fitted) == 1


class Forwards:
    """Count the images that pass through extracted subnets, of whose time each takes a second."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images, plain = 0, Supernet.extract

        def extract(supernet: Supernet, arch: Arch, stats: Stats) -> torch.nn.Module:
            net = plain(supernet, arch, stats)
            net.register_forward_pre_hook(lambda _, args: self.add(len(args[0])))
            return net

        monkeypatch.setattr(Supernet, "extract", extract)

    def add(self, images: int) -> None:
        self.images += images


def test_the_classifier_is_fitted_to_few_of_many_images(started: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """They depend on the seed alone, and have all classes; without the bound every image passes through the network."""
    monkeypatch.setattr("hnas.recipes.start._FITTED", 96)
    forwards, weights = Forwards(monkeypatch), []
    _, found, _ = begin(started, None, scratch=False)
    task = coloured(400)
    space = spaces.load("inverted_residuals")(**found.arguments, channels=3, classes=4, resolutions=[16])
    for seed in (0, 0, 1):
        study, said = Study(make_started(space, 0, "x", found, space), task, seed=seed), []
        fit_classifier(study, said.append)
        assert said == ["fitting the classifier to 96 of 400 training images"]
        weights.append(study.snapshot()["classifier.weight"])
    assert forwards.images == 3 * 96
    assert weights[0].equal(weights[1])
    assert not weights[0].equal(weights[2])
    assert all(float(row.abs().max()) > 0 for row in weights[0])
    monkeypatch.setattr("hnas.distributed.rank", lambda: 1)
    fit_classifier(study, lambda _: pytest.fail("the second rank fits"))
    assert forwards.images == 3 * 96


def test_the_fit_of_the_classifier_is_timed(started: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its predicted seconds are those of the training images that it takes, and of the calibration images."""
    forwards = Forwards(monkeypatch)
    _, found, _ = begin(started, None, scratch=False)
    space = spaces.load("inverted_residuals")(**found.arguments, channels=3, classes=4, resolutions=[16])
    supernet = make_started(space, 0, "x", found, space)
    before = {name: value.detach().clone() for name, value in supernet.union.named_parameters()}
    assert time_fitting(supernet, coloured(400), lambda: float(forwards.images)) == 400 + 64
    monkeypatch.setattr("hnas.recipes.start._FITTED", 96)
    assert time_fitting(supernet, coloured(400), lambda: float(forwards.images)) == 96 + 64
    assert all(value.equal(before[name]) for name, value in supernet.union.named_parameters())


def test_a_run_of_minutes_pays_for_the_fit_of_the_classifier(
    tmp_path: Path, started: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes one second and the fit 30: of a minute, 18 seconds are left for steps."""
    monkeypatch.setattr("hnas.recipes.run.time_step", lambda *_: 1.0)
    monkeypatch.setattr("hnas.recipes.run.time_fitting", lambda *_: 30.0)
    monkeypatch.setattr("hnas.recipes.length.train_plain_cnn", lambda *_, **__: 0.5)
    data, said = photos.write(tmp_path / "photos"), []
    given = replace(started, train={**started.train, "epochs": 9})
    record = run_recipe(given, data, tmp_path / "out", RunOptions(minutes=1, report=True), on_message=said.append)
    assert record["steps"] == 18
    assert record["plan"]["minutes"] == 1.0
    fitting = next(k for k, line in enumerate(said) if line.startswith("fitting the classifier to "))
    assert any(line.startswith("predicted 1.0 minutes") for line in said[:fitting])
    assert any(line.startswith("epoch") for line in said[fitting:])
    scratch = run_recipe(given, data, tmp_path / "scratch", RunOptions(minutes=1, scratch=True))
    assert scratch["steps"] == 48


def test_without_the_weights_training_is_from_scratch_and_says_how_to_get_them(
    started: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert begin(started, None, scratch=True) == (replace(started, pretrained={}), None, "")
    monkeypatch.setitem(sys.modules, "timm", None)
    run, found, line = begin(started, None, scratch=False)
    assert (run, found) == (replace(started, pretrained={}), None)
    assert line == "tiny needs timm, which is not installed; pip install 'hnas[pretrained]'; training from scratch"
    with pytest.raises(NoWeights, match=r"pip install 'hnas\[pretrained\]'"):
        begin(started, "tiny", scratch=False)


def test_a_recipe_without_the_section_takes_named_weights(started: Recipe) -> None:
    run, found, _ = begin(replace(started, pretrained={}), "tiny", scratch=False)
    assert found is not None
    assert run.space["name"] == "inverted_residuals"
    assert run.train == started.train


def test_a_network_of_another_kind_teaches(tmp_path: Path, started: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher is fine-tuned once, also where the run is interrupted; it changes what the supernet learns."""
    data, said = photos.write(tmp_path / "photos"), []
    options = RunOptions(epochs=0.5, pretrained="resnet")

    def stop(done: int, of: int, loss: float) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run_recipe(started, data, tmp_path / "out", options, on_step=stop, on_message=said.append)
    assert "resnet teaches: timm, x/tiny, licence mit" in said
    assert any(line.startswith("the teacher classifies ") for line in said)
    again: list[str] = []
    record = run_recipe(started, data, tmp_path / "out", replace(options, resume=True), on_message=again.append)
    assert not [line for line in again if line.startswith("fine-tuning")]
    assert record["recipe"]["pretrained"]["role"] == "teacher"
    assert record["recipe"]["space"]["name"] == "hybrid_vision"
    whole = run_recipe(started, data, tmp_path / "whole", options)
    plain = run_recipe(started, data, tmp_path / "plain", replace(options, pretrained=None, scratch=True))
    assert whole["accuracy"] == record["accuracy"]
    assert equal(load_supernet(tmp_path / "whole")[0], load_supernet(tmp_path / "out")[0])
    assert not equal(load_supernet(tmp_path / "whole")[0], load_supernet(tmp_path / "plain")[0])
    assert not plain["recipe"].get("pretrained")
    assert not (tmp_path / "out" / "teacher.safetensors").exists()


def test_the_teacher_of_another_run_is_not_taken(tmp_path: Path) -> None:
    """Another seed, other images or another network: the teacher is fine-tuned anew."""

    class Longer(standin_timm.ResNet):
        def __init__(self) -> None:
            super().__init__()
            self.more = torch.nn.Linear(2, 2)

    def tuned(run: object, first: int = 0, kind: type[standin_timm.ResNet] = standin_timm.ResNet) -> bool:
        lines: list[str] = []
        splits = {split: tiny.data(64, first + k) for k, split in enumerate(("train", "calibration", "search", "test"))}
        coloured = {split: replace(each, images=each.images.repeat(3, -1)) for split, each in splits.items()}
        like = Preprocessing((12, 12), (12, 12), (0.3,) * 3, (0.2,) * 3)
        task = Classification(coloured, like, batch_size=16, flip=False, shift=1)
        fine_tune(taught(task, kind(), 12, seed=0), 2, tmp_path / "teacher.safetensors", run, lines.append)
        return any(line.startswith("fine-tuning") for line in lines)

    assert tuned({"seed": 0})
    assert not tuned({"seed": 0})
    assert tuned({"seed": 1})
    assert tuned({"seed": 1}, 9)
    assert not tuned({"seed": 1}, 9)
    with pytest.raises(ValueError, match=r"teacher.safetensors holds another network than Longer; remove it"):
        tuned({"seed": 1}, 9, Longer)
    assert tuned({"seed": 1, "sha256": "of Longer"}, 9, Longer)


def test_a_teacher_of_another_size_is_one_line(started: Recipe) -> None:
    class Fixed(standin_timm.ResNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError(f"Input height ({x.shape[2]}) doesn't match model (224).\nmore")

    with pytest.raises(ValueError, match=r"Fixed does not read images of 12 x 12 pixels: Input height .12."):
        taught(tiny.task(), Fixed(), 12, seed=0)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": "tiny", "network": {}}, r"\[pretrained\] has no key 'network'; known: space, data, train, short"),
        ({"name": "tiny", "short": {"data": {}}}, r"\[pretrained.short\] has no key 'data'; known: space, train"),
        ({"name": "tiny", "train": 3}, "pretrained.train is no table of keys"),
        ({"train": {}}, r"\[pretrained\] lacks 'name'"),
    ],
)
def test_a_section_that_makes_no_sense_is_one_line(started: Recipe, table: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        begin(replace(started, pretrained=table), None, scratch=False)


def test_the_recipe_images_names_weights() -> None:
    assert load_recipe("images").pretrained["name"] == "efficientnet_lite0"
