"""Data sets larger than memory: the same batches however many read them, and clear words for what is ruined."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hnas import experiment
from hnas.files import read_json
from hnas.recipes import Recipe
from hnas.recipes import load as recipe_named
from hnas.tasks import images, sources, stream
from hnas.tasks.sources import Example, folders, members, read, shards
from hnas.tasks.stream import Stream, Unread
from hnas.tasks.stream import stream as opened
from tests.conftest import need
from tests.hnas import tiny

CLASSES = ("cat", "dog", "eel", "fox")
PER_CLASS = 16


@pytest.fixture(autouse=True, scope="module")
def kornia() -> None:
    need("kornia", None if stream.find_spec("kornia") else "kornia is not installed")


def jpeg(label: int, index: int) -> bytes:
    """A picture of 40 x 30 whose bright quadrant is its class."""
    pixels = np.random.default_rng([label, index]).integers(0, 96, (30, 40, 3)).astype(np.uint8)
    pixels[15 * (label // 2) :, 20 * (label % 2) :][:15, :20] += 128
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "jpeg")
    return stream.getvalue()


def write_folder(root: Path, per_class: int = PER_CLASS) -> Path:
    for split, count, first in (("train", per_class, 0), ("val", 4, 1000)):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(first, first + count):
                (folder / f"{name}_{index:05}.jpg").write_bytes(jpeg(label, index))
    return root


def write_shard(file: Path, examples: list[tuple[str, bytes]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, content in examples:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def pairs(first: int, count: int) -> list[tuple[str, bytes]]:
    """Images and class numbers as neighbours, the classes in turn."""
    found = []
    for index in range(first, first + count):
        found += [(f"{index:06}.jpg", jpeg(index % 4, index)), (f"{index:06}.cls", b"%d" % (index % 4))]
    return found


def write_shards(root: Path, count: int = 6, size: int = 12) -> Path:
    for number in range(count):
        write_shard(root / "train" / f"shard-{number:06}.tar", pairs(number * size, size))
    write_shard(root / "val" / "shard-000000.tar", pairs(1000, 12))
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("folder"))


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("tars"))


def task(root: Path, reader: str = "folder", **options) -> Stream:
    return opened(root, reader, **{"size": 12, "workers": 0, "batch_size": 8, **options})


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
            assert same(task(root, reader).batch(step), straight[step]), (reader, step)  # as a resumed run asks
            assert same(through.batch(step), straight[step]), (reader, step)  # as nobody asks, but may
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


def test_an_epoch_of_files_has_every_image_once(folder):
    source, _ = folders(folder)
    streams = source.lanes(0, 1, 4, range(4), 0)
    share = len(source) // 4
    names = [next(lane).name for lane in streams for _ in range(share)]
    assert len(set(names)) == len(names) == 4 * share


def test_an_epoch_of_shards_mixes_within_and_among_them(tars, monkeypatch):
    monkeypatch.setattr(sources, "BUFFER", 4)
    source, _ = shards(tars)
    (lane,) = source.lanes(0, 0, 1, [0], 0)
    found = [next(lane) for _ in range(len(source))]
    assert {example.name for example in found} == {example.name for example in source.examples()}
    assert [example.offset for example in found[:12]] != sorted(example.offset for example in found[:12])
    again = source.lanes(0, 0, 1, [0], 7)[0]
    assert [next(again) for _ in range(5)] == found[7:12]


def test_resuming_decodes_nothing_of_what_is_behind(folder, tars, monkeypatch):
    count = []
    plain = stream.read
    monkeypatch.setattr(stream, "read", lambda example: (count.append(example), plain(example))[1])
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
    train, held = folders(folder)
    names = {split: {example.name for example in part.examples()} for split, part in {"train": train, **held}.items()}
    assert sum(map(len, names.values())) == len(set().union(*names.values())) == 4 * (PER_CLASS + 4)
    assert all("/val/" in name for name in names["test"])
    assert {split: len(found) for split, found in names.items()} == {
        "train": 55,
        "calibration": 3,
        "search": 6,
        "test": 16,
    }
    assert task(folder).classes == CLASSES


def test_a_plain_folder_is_divided_as_the_reader_that_loads_it_does(folder):
    train, held = folders(folder / "train")
    for split in ("calibration", "search", "test", "train"):
        loaded = images.load(folder / "train", split, (12, 12), 3)
        ours = train if split == "train" else held[split]
        assert ours.labels.tolist() == loaded.labels.tolist()
    pixels, labels = task(folder / "train").held("search")
    loaded = images.load(folder / "train", "search", (12, 12), 3)
    assert np.array_equal(pixels, loaded.images)
    assert labels.tolist() == loaded.labels.tolist()


def test_shards_are_held_out_whole(tars):
    train, held = shards(tars)
    assert [Path(file).name for file in held["search"].files] == ["shard-000005.tar"]
    assert [Path(file).name for file in held["calibration"].files] == ["shard-000004.tar"]
    assert [Path(file).parent.name for file in held["test"].files] == ["val"]
    assert len(train.files) == 4
    assert len(train) == 48


def test_a_large_held_out_split_is_decoded_piece_by_piece(folder, monkeypatch):
    kept = task(folder)
    pixels, _ = kept.held("test")
    monkeypatch.setattr(stream, "MEMORY", 100)
    unread, labels = task(folder).held("test")
    assert isinstance(unread, Unread)
    assert len(unread) == len(labels) == 16
    assert np.array_equal(unread[4:8].pixels(), pixels[4:8])
    shape = ((3, 8, 8),)
    assert torch.equal(task(folder).inputs(unread[:3], shape)[0], kept.inputs(pixels[:3], shape)[0])


def test_sizes_beside_the_shards_save_counting(tmp_path, monkeypatch):
    root = write_shards(tmp_path)
    counted, _ = shards(root)
    for part in ("val", "train"):
        sizes = {file.name: 12 for file in (root / part).glob("*.tar")}
        (root / part / "sizes.json").write_text(json.dumps(sizes))
    monkeypatch.setattr(sources, "members", None)
    assert shards(root)[0].digest == counted.digest
    (root / "train" / "sizes.json").write_text(json.dumps({**sizes, "shard-000003.tar": "many"}))
    with pytest.raises(ValueError, match=r'gives "many" as the size of shard-000003.tar; a number from 1 on'):
        shards(root)


# --- ruins ------------------------------------------------------------------------------------------------------------


def one_line(error: pytest.ExceptionInfo[BaseException]) -> bool:
    return "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_corrupt_image_is_one_line_with_its_name_or_is_skipped_and_counted(tmp_path, workers):
    root = write_folder(tmp_path, 8)
    ruined = sorted((root / "train" / "dog").iterdir())
    for file in ruined:
        file.write_bytes(file.read_bytes()[:200])
    strict = task(root, workers=workers)
    with pytest.raises(ValueError, match=r"train/dog/dog_0000\d.jpg is no image that can be read") as caught:
        [strict.batch(step) for step in range(strict.steps_per_epoch)]
    assert one_line(caught)
    lenient = task(root, workers=workers, skip=True)
    batches = [lenient.batch(step) for step in range(lenient.steps_per_epoch)]
    assert all(len(labels) == 8 and 1 not in labels for _, labels in batches)
    assert 0 < lenient.skipped <= len(ruined)
    assert same(task(root, skip=True).batch(2), batches[2])  # a resumed run sees what stood in
    again = lenient.skipped
    lenient.batch(lenient.steps_per_epoch)
    assert lenient.skipped >= again


def test_nothing_but_ruins_is_an_error_even_where_they_are_skipped(tmp_path, monkeypatch):
    root = write_folder(tmp_path, 8)
    for file in (root / "train").rglob("*.jpg"):
        file.write_bytes(b"no image")
    monkeypatch.setattr(stream, "ROW", 5)
    with pytest.raises(ValueError, match=r"6 images in a row cannot be read; the last: .*train/") as caught:
        task(root, skip=True).batch(0)
    assert one_line(caught)


def test_a_ruined_held_out_image_is_named_or_black(tmp_path):
    root = write_folder(tmp_path, 8)
    (root / "val" / "cat" / "cat_01000.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"val/cat/cat_01000.jpg is no image that can be read"):
        task(root).held("test")
    pixels, _ = task(root, skip=True).held("test")
    assert not pixels[0].any()
    assert pixels[1].any()


@pytest.mark.parametrize("cut", [0, 100, 512, 700, 5000, -10240, -9000])
def test_a_shard_that_is_cut_short_is_one_line_with_its_name(tmp_path, cut):
    file = tmp_path / "shard-000000.tar"
    write_shard(file, pairs(0, 6))
    size = file.stat().st_size
    with tarfile.open(file) as archive:
        end = max(member.offset_data + (member.size + 511) // 512 * 512 for member in archive)
    file.write_bytes(file.read_bytes()[: cut if cut >= 0 else end + (0 if cut == -10240 else -300)])
    assert file.stat().st_size < size
    with pytest.raises(ValueError, match=r"shard-000000.tar is no whole tar file: .*make or copy the shard") as caught:
        list(members(str(file), 4))
    assert one_line(caught)


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([("1.jpg", b"x"), ("1.cls", b"four")], "1.cls holds 'four'; a class number below 4 is expected"),
        ([("1.jpg", b"x"), ("1.cls", b"4")], "1.cls holds '4'; a class number below 4 is expected"),
        ([("1.jpg", b"x"), ("2.cls", b"1")], "holds no pairs of an image and its class"),
        ([("1.txt", b"x")], "holds no pairs of an image and its class"),
    ],
)
def test_a_shard_that_holds_something_else_is_one_line(tmp_path, examples, message):
    write_shard(tmp_path / "a.tar", examples)
    with pytest.raises(ValueError, match=message) as caught:
        list(members(str(tmp_path / "a.tar"), 4))
    assert one_line(caught)


def test_a_shard_with_a_spoilt_header_is_not_taken_for_a_short_one(tmp_path):
    file = tmp_path / "a.tar"
    write_shard(file, pairs(0, 6))
    with tarfile.open(file) as archive:
        third = archive.getmembers()[4].offset
    content = bytearray(file.read_bytes())
    content[third : third + 100] = b"\xff" * 100
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"it ends at byte {third}; make or copy the shard again"):
        list(members(str(file), 4))


def test_links_and_absurd_sizes_in_a_shard_lead_nowhere(tmp_path, monkeypatch):
    file = tmp_path / "a.tar"
    with tarfile.open(file, "w") as archive:
        link = tarfile.TarInfo("0.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
        for name, content in [("0.cls", b"0"), *pairs(1, 1), ("../../evil.jpg", b"x"), ("../../evil.cls", b"0")]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    found = list(members(str(file), 4))
    assert [example.member for example in found] == ["000001.jpg", "../../evil.jpg"]
    assert read(found[1]) == b"x"  # of the shard: names are never paths
    monkeypatch.setattr(sources, "LARGEST", 10)
    with pytest.raises(ValueError, match=r"000001.jpg has .* bytes; an image has at most 10"):
        list(members(str(file), 4))


def test_a_file_that_has_gone_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone.jpg cannot be read: No such file"):
        read(Example(str(tmp_path / "gone.jpg"), 0))
    (tmp_path / "a.tar").write_bytes(b"12345")
    with pytest.raises(ValueError, match=r"a.tar: 1.jpg is cut short: 3 of 9 bytes"):
        read(Example(str(tmp_path / "a.tar"), 0, 2, 9, "1.jpg"))


def test_folders_that_hold_something_else_are_one_line(tmp_path, folder, tars):
    (tmp_path / "empty").mkdir()
    write_folder(tmp_path / "odd", 4)
    (tmp_path / "odd" / "val" / "gnu").mkdir()
    write_shards(tmp_path / "few", 2)
    (tmp_path / "few" / "classes.txt").write_text("cat\n")
    for root, reader, message in [
        (tmp_path / "absent", "folder", "no folder .*absent; --data takes a folder of images or of tar shards here"),
        (tmp_path / "empty", "folder", "it has 0 sub-folders with 0 images"),
        (tmp_path / "odd", "folder", "train and val have other classes; gnu is in one of them alone"),
        (tmp_path / "few", "webdataset", "classes.txt names 1 classes; two or more are expected"),
        (folder, "webdataset", "classes.txt cannot be read"),
        (tars, "tape", "no reader 'tape'; known: folder, webdataset"),
    ]:
        with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
            task(root, reader)
        assert one_line(caught)
    (tmp_path / "few" / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(ValueError, match="holds 2 tar shards; it takes 3: some are held out whole"):
        task(tmp_path / "few", "webdataset")
    with pytest.raises(ValueError, match="is 4 streams, which do not divide among 3 processes"):
        task(tars, "webdataset").part(0, 0, 3)


def test_without_kornia_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setattr(stream, "find_spec", lambda name: None)
    with pytest.raises(stream.Unavailable, match=r"kornia is not installed; pip install 'hnas\[imagenet\]'") as caught:
        task(folder)
    assert caught.value.code == 3


@pytest.mark.slow
def test_a_worker_that_is_killed_is_one_line(folder, monkeypatch):
    import os
    import signal

    monkeypatch.setattr(stream, "read", lambda example: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(
        stream.ReaderLost, match=r"a process that reads images has ended: .*; use fewer workers"
    ) as caught:
        task(folder, workers=1).batch(0)
    assert one_line(caught)


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
    record = experiment.run(recipe(reader=reader, skip=True, randaugment=[1, 5]), root, tmp_path / "out")
    assert record["steps"] == 3
    assert record["skipped"] == 0
    assert record["images"]["test"] > 0
    assert read_json(tmp_path / "out" / "supernet.json")["task"]["classes"] == list(CLASSES)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"reader": "tape"}, "no reader 'tape'; known: memory, folder, webdataset"),
        ({"shift": 2}, r"\[data\] has no key 'shift'; known: reader, size, channels, flip, workers"),
        ({"workers": -1}, "workers is -1; expected a whole number from 0 on"),
        ({"randaugment": [2, 30]}, r"randaugment is \[2, 30\]; expected \[operations to 15, magnitude to 29"),
        ({"skip": 1}, "skip is 1; expected true or false"),
        ({"area": 2}, "area is 2; expected a share between 0 and 1"),
    ],
)
def test_a_recipe_with_a_wrong_reader_is_one_line(folder, tmp_path, data, message):
    with pytest.raises(ValueError, match=message) as caught:
        experiment.run(recipe(**data), folder, tmp_path / "out")
    assert one_line(caught)


def test_the_shipped_recipe_reads_folders_in_workers_and_in_bf16(folder):
    shipped = recipe_named("imagenet")
    found = experiment.task_of(shipped, folder)
    assert isinstance(found, Stream)
    assert found.preprocessing.base == (224, 224)
    assert found.workers > 0
    assert shipped.train["precision"] == "bf16"
