"""Data sets larger than memory: batches do not depend on the number of workers, and errors name the damaged file."""

from __future__ import annotations

import multiprocessing
import os
import signal
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from hnas import distributed
from hnas.data import held as held_out
from hnas.data import images, lanes
from hnas.data.folders import find_files
from hnas.data.held import Unread
from hnas.files import read_json
from hnas.recipes import Recipe
from hnas.recipes import load as recipe_named
from hnas.recipes.parts import open_task_of
from hnas.recipes.run import run_recipe
from hnas.recipes.schema import decode_recipe
from hnas.tasks import stream
from hnas.tasks.stream import Stream
from tests.conftest import need
from tests.ending import wait_until_ended
from tests.hnas import tiny
from tests.hnas.imagenet import CLASSES, PER_CLASS, write_folder, write_shards


@pytest.fixture(autouse=True, scope="module")
def kornia() -> None:
    need("kornia", None if stream.find_spec("kornia") else "kornia is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("folder"))


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("tars"))


def task(root: Path, reader: str = "folder", **options) -> Stream:
    return stream.open_task(root, reader=reader, **{"size": 12, "workers": 0, "batch_size": 8, **options})


def sources_of(folder: Path, tars: Path) -> list[tuple[Path, str]]:
    return [(folder, "folder"), (tars, "webdataset")]


def same(one, other) -> bool:
    return bool(np.array_equal(one[0], other[0])) and torch.equal(one[1], other[1])


# --- batches ----------------------------------------------------------------------------------------------------------


def test_a_batch_depends_on_seed_and_step_alone(folder, tars):
    for root, reader in sources_of(folder, tars):
        through = task(root, reader)
        straight = [through.batch(step) for step in range(through.steps_per_epoch + 2)]
        assert straight[0][0].shape == (8, 12, 12, 3)
        assert straight[0][0].dtype == np.uint8
        for step in (3, through.steps_per_epoch + 1):
            assert same(task(root, reader).batch(step), straight[step]), (reader, step)  # as in a resumed run
            assert same(through.batch(step), straight[step]), (reader, step)  # in any order
        assert not same(straight[0], straight[1])
        assert not same(straight[0], straight[through.steps_per_epoch])
        assert not same(straight[0], task(root, reader, seed=1).batch(0))


def test_the_ranks_parts_are_together_the_batch_of_one(folder, tars):
    for root, reader in sources_of(folder, tars):
        whole = task(root, reader).batch(2)
        parts = [task(root, reader).part(2, rank, 2) for rank in (0, 1)]
        found = {(image.tobytes(), int(label)) for part in parts for image, label in zip(*part, strict=True)}
        assert found == {(image.tobytes(), int(label)) for image, label in zip(*whole, strict=True)}
        assert [len(labels) for _, labels in parts] == [4, 4]


@pytest.mark.slow
def test_workers_change_nothing(folder, tars):
    for root, reader in sources_of(folder, tars):
        plain = task(root, reader)
        for workers in (1, 3):
            many = task(root, reader, workers=workers)
            for step in (1, 2, plain.steps_per_epoch):
                assert same(many.batch(step), plain.batch(step)), (reader, workers, step)


def test_resuming_decodes_nothing_of_what_is_behind(folder, tars, monkeypatch):
    count = []
    plain = lanes.read_example
    monkeypatch.setattr(lanes, "read_example", lambda example: (count.append(example), plain(example))[1])
    for root, reader in sources_of(folder, tars):
        count.clear()
        resumed = task(root, reader)
        resumed.batch(resumed.steps_per_epoch - 1)
        assert len(count) == 8


def test_augmentation_leaves_torchs_generator_alone_and_reaches_every_part(folder):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    plain = task(folder).batch(1)
    assert torch.equal(torch.rand(3), expected)
    assert not same(plain, task(folder, flip=False).batch(1))
    assert not same(plain, task(folder, area=0.9).batch(1))
    strong = task(folder, randaugment=[2, 9]).batch(1)
    assert torch.equal(strong[1], plain[1])
    assert not same(plain, strong)
    assert same(strong, task(folder, randaugment=[2, 9]).batch(1))
    assert task(folder, channels=1).batch(1)[0].shape == (8, 12, 12, 1)


# --- splits -----------------------------------------------------------------------------------------------------------


def test_a_folder_with_train_and_val_holds_out_files_of_train_once(folder):
    train, held = find_files(folder)
    names = {split: {example.name for example in part.examples()} for split, part in {"train": train, **held}.items()}
    assert sum(map(len, names.values())) == len(set().union(*names.values())) == 4 * (PER_CLASS + 4)
    assert all("/val/" in name for name in names["test"])
    assert {split: len(found) for split, found in names.items()} == {
        "train": 54,
        "calibration": 1,
        "search": 9,
        "test": 16,
    }
    assert task(folder).classes == CLASSES


def test_a_plain_folder_is_divided_as_the_reader_that_loads_it_does(folder):
    train, held = find_files(folder / "train")
    for split in ("calibration", "search", "test", "train"):
        loaded = images.load_split(folder / "train", split, (12, 12), 3)
        ours = train if split == "train" else held[split]
        assert ours.labels.tolist() == loaded.labels.tolist()
    pixels, labels = task(folder / "train").held("search")
    loaded = images.load_split(folder / "train", "search", (12, 12), 3)
    assert np.array_equal(pixels, loaded.images)
    assert labels.tolist() == loaded.labels.tolist()


def test_a_large_held_out_split_is_decoded_piece_by_piece(folder, monkeypatch):
    kept = task(folder)
    pixels, _ = kept.held("test")
    monkeypatch.setattr(held_out, "_MEMORY", 100)
    unread, labels = task(folder).held("test")
    assert isinstance(unread, Unread)
    assert len(unread) == len(labels) == 16
    assert np.array_equal(unread[4:8].pixels(), pixels[4:8])
    shape = ((3, 8, 8),)
    assert torch.equal(task(folder).inputs(unread[:3], shape)[0], kept.inputs(pixels[:3], shape)[0])


# --- damaged files ----------------------------------------------------------------------------------------------------


def one_line(error: pytest.ExceptionInfo[BaseException]) -> bool:
    return "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_corrupt_image_is_one_line_with_its_name_or_is_skipped_and_counted(tmp_path, workers):
    root = write_folder(tmp_path, 8)
    damaged = sorted((root / "train" / "dog").iterdir())
    for file in damaged:
        file.write_bytes(file.read_bytes()[:200])
    strict = task(root, workers=workers)
    with pytest.raises(ValueError, match=r"train/dog/dog_0000\d.jpg cannot be read as an image") as caught:
        [strict.batch(step) for step in range(strict.steps_per_epoch)]
    assert one_line(caught)
    lenient = task(root, workers=workers, skip=True)
    batches = [lenient.batch(step) for step in range(lenient.steps_per_epoch)]
    assert all(len(labels) == 8 and 1 not in labels for _, labels in batches)
    assert 0 < lenient.skipped <= len(damaged)
    assert same(task(root, skip=True).batch(2), batches[2])  # a resumed run takes the same replacements
    again = lenient.skipped
    lenient.batch(lenient.steps_per_epoch)
    assert lenient.skipped >= again


def test_nothing_but_damaged_images_is_an_error_even_where_they_are_skipped(tmp_path, monkeypatch):
    root = write_folder(tmp_path, 8)
    for file in (root / "train").rglob("*.jpg"):
        file.write_bytes(b"no image")
    monkeypatch.setattr(lanes, "_ROW", 5)
    with pytest.raises(ValueError, match=r"6 images in a row cannot be read; the last: .*train/") as caught:
        task(root, skip=True).batch(0)
    assert one_line(caught)


def test_a_damaged_held_out_image_is_named_or_black(tmp_path):
    root = write_folder(tmp_path, 8)
    (root / "val" / "cat" / "cat_01000.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"val/cat/cat_01000.jpg cannot be read as an image"):
        task(root).held("test")
    pixels, _ = task(root, skip=True).held("test")
    assert not pixels[0].any()
    assert pixels[1].any()


def test_folders_that_hold_something_else_are_one_line(tmp_path, folder, tars):
    (tmp_path / "empty").mkdir()
    write_folder(tmp_path / "odd", 4)
    (tmp_path / "odd" / "val" / "gnu").mkdir()
    write_shards(tmp_path / "few", 2)
    (tmp_path / "few" / "classes.txt").write_text("cat\n")
    for root, reader, message in [
        (tmp_path / "absent", "folder", "no folder .*absent; --data takes a folder of images or of tar shards here"),
        (tmp_path / "empty", "folder", "found 0 sub-folders with 0 images"),
        (tmp_path / "odd", "folder", "train and val have different classes; gnu is in only one of them"),
        (tmp_path / "few", "webdataset", "classes.txt names 1 classes; two or more are expected"),
        (folder, "webdataset", "classes.txt cannot be read"),
        (tars, "tape", "no reader 'tape'; known: folder, webdataset"),
    ]:
        with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
            task(root, reader)
        assert one_line(caught)
    (tmp_path / "few" / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(ValueError, match="contains 2 tar shards; 3 or more are needed, because some are held out"):
        task(tmp_path / "few", "webdataset")
    with pytest.raises(ValueError, match="is 4 streams, which do not divide among 3 processes"):
        task(tars, "webdataset").part(0, 0, 3)


def test_without_kornia_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setattr(stream, "find_spec", lambda name: None)
    with pytest.raises(
        stream.PackageMissing, match=r"kornia is not installed; pip install 'hnas\[imagenet\]'"
    ) as caught:
        task(folder)
    assert caught.value.code == 3


def killable(folder: Path) -> tuple[Stream, int]:
    """Return a task with one running worker, and the process of the worker."""
    reading = task(folder, workers=1)
    before = {child.pid for child in multiprocessing.active_children()}
    reading.batch(0)
    (reader,) = {child.pid for child in multiprocessing.active_children()} - before
    assert reader is not None
    return reading, reader


@pytest.mark.slow
def test_a_worker_that_is_killed_is_one_line(folder):
    reading, reader = killable(folder)

    def go_on() -> None:
        with distributed.group():  # torch raises at the signal, at any line, unless the pipe has ended before
            os.kill(reader, signal.SIGKILL)
            for step in range(1, 100):  # what the worker had read before still arrives
                reading.batch(step)

    with pytest.raises(RuntimeError, match=r"a process that reads images has ended: ") as caught:
        go_on()
    assert one_line(caught)
    wait_until_ended(reader)  # and nothing is raised later


@pytest.mark.slow
def test_a_pipe_that_ends_before_the_signal_leaves_no_signal_behind(folder, monkeypatch):
    reading, reader = killable(folder)

    def ended(_):
        raise EOFError

    monkeypatch.setattr(type(reading._open["parts"]), "__next__", ended)
    with pytest.raises(stream.ReaderLost, match=r"a process that reads images has ended: .*; use fewer workers"):
        reading.batch(1)
    with suppress(ProcessLookupError):  # it has ended
        os.kill(reader, signal.SIGKILL)
    wait_until_ended(reader)


# --- from a recipe to a supernet --------------------------------------------------------------------------------------


def recipe(**data) -> Recipe:
    arguments = {key: value for key, value in tiny.ARGUMENTS.items() if key != "classes"}
    section = {"size": 12, "channels": 3, "reader": "folder", "workers": 0, **data}
    return Recipe(
        "tiny", {"name": "hybrid_vision", **arguments}, section, {"strategy": "sandwich", "epochs": 0.5, "batch": 8}
    )


@pytest.mark.parametrize("reader", ["folder", "webdataset"])
def test_a_small_imagenet_trains_from_end_to_end(folder, tars, tmp_path, reader):
    root = folder if reader == "folder" else tars
    record = run_recipe(recipe(reader=reader, skip=True, randaugment=[1, 5]), root, tmp_path / "out")
    assert record["steps"] == 3
    assert record["skipped"] == 0
    assert record["images"]["test"] > 0
    assert read_json(tmp_path / "out" / "supernet.json")["task"]["classes"] == list(CLASSES)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"reader": "tape"}, "no reader 'tape'; known: memory, folder, webdataset"),
        ({"shift": 2}, r"\[data\] has no key 'shift'; known: reader, size, channels, flip, workers"),
        ({"workers": -1}, "data.workers is -1, expected a whole number from 0 on"),
        ({"randaugment": [2, 30]}, r"data.randaugment is \[2, 30\], expected \[operations to 15, magnitude to 29"),
        ({"skip": 1}, "data.skip is 1, expected true or false"),
        ({"area": 2}, "data.area is 2, expected a share between 0 and 1"),
    ],
)
def test_a_recipe_with_a_wrong_reader_is_one_line(folder, tmp_path, data, message):
    with pytest.raises(ValueError, match=message) as caught:
        run_recipe(recipe(**data), folder, tmp_path / "out")
    assert one_line(caught)


def test_the_shipped_recipe_reads_folders_in_workers_and_in_bf16(folder):
    shipped = recipe_named("imagenet")
    found = open_task_of(decode_recipe(shipped), folder)
    assert isinstance(found, Stream)
    assert found.preprocessing.base == (224, 224)
    assert found.workers > 0
    assert shipped.train["precision"] == "bf16"
