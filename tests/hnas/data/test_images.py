"""Images as arrays: IDX files, folders of images, and preprocessing."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hnas.data import decoding, images, layout
from hnas.data.images import Preprocessing, load_split, read_idx, write_idx
from hnas.tasks.classification import open_task

HELD = {"calibration": 10, "search": 20}


@pytest.fixture
def idx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write four IDX files: 100 training and 16 test images, all different."""
    monkeypatch.setattr(images, "HELD", HELD)
    for prefix, n in (("train", 100), ("t10k", 16)):
        pixels = np.random.default_rng(n).integers(0, 256, (n, 12, 12), np.uint8)
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", pixels)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", (np.arange(n) % 10).astype(np.uint8))
    return tmp_path


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Write two classes of 60 small images in several formats and modes."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for k in range(60):
            pixels = rng.integers(0, 256, (9 + k % 4, 8, 3), np.uint8)
            mode = ("RGB", "L", "RGBA", "P")[k % 4]
            Image.fromarray(pixels).convert(mode).save(tmp_path / name / f"{label}{k}.png")
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    return tmp_path


# --- IDX --------------------------------------------------------------------------------------------------------------


@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=4), packed=st.booleans())
def test_idx_files_are_read_as_written(tmp_path_factory, shape, packed):
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    file = tmp_path_factory.mktemp("idx") / "a.gz"
    write_idx(file, array)
    if not packed:
        plain = file.with_suffix("")
        plain.write_bytes(gzip.decompress(file.read_bytes()))
        file = plain
    assert np.array_equal(read_idx(file), array)


def test_an_idx_file_is_written_with_the_same_bytes_each_time(tmp_path):
    for name in "ab":
        write_idx(tmp_path / f"{name}.gz", np.arange(12, dtype=np.uint8).reshape(3, 4))
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


HEADER = struct.pack(">HBB2I", 0, 8, 2, 3, 4)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        HEADER[:3],
        HEADER[:7],
        HEADER,
        HEADER + bytes(11),
        HEADER + bytes(13),
        struct.pack(">HBB2I", 1, 8, 2, 3, 4) + bytes(12),
        struct.pack(">HBB2I", 0, 13, 2, 3, 4) + bytes(12),
        b"PK\x03\x04 something else altogether",
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_a_damaged_idx_file_is_one_line(tmp_path, content, packed):
    file = tmp_path / ("a.gz" if packed else "a")
    file.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(ValueError, match="is not a complete IDX file") as caught:
        read_idx(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b[:5], lambda b: b"x" + b, lambda b: b[:20] + b[30:]])
def test_a_damaged_gzip_is_one_line(tmp_path, damage):
    file = tmp_path / "a.gz"
    write_idx(file, np.random.default_rng(0).integers(0, 256, (30, 30), np.uint8))
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match="is not a complete IDX file"):
        read_idx(file)


def test_splits_are_disjoint_fixed_and_whole(idx):
    found = {split: load_split(idx, split) for split in images.SPLITS}
    assert {split: len(data) for split, data in found.items()} == {"train": 70, **HELD, "test": 16}
    seen = [image.tobytes() for data in found.values() for image in data.images]
    assert len(set(seen)) == 116
    again = {split: load_split(idx, split).digest for split in found}
    assert again == {split: data.digest for split, data in found.items()}
    assert len({data.digest for data in found.values()}) == 4
    assert all(data.classes == images.FASHION for data in found.values())


def test_splits_agree_on_the_classes_where_one_lacks_the_last_class(idx):
    labels = np.zeros(100, np.uint8)
    labels[0] = 6
    write_idx(idx / "train-labels-idx1-ubyte.gz", labels)
    assert {load_split(idx, split).classes for split in ("train", *HELD)} == {tuple("0123456")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "train-labels-idx1-ubyte.gz").unlink(), "lacks train-images-idx3-ubyte or train-labels"),
        (lambda f: write_idx(f / "train-labels-idx1-ubyte.gz", np.zeros(3, np.uint8)), r"labels \[3\]"),
        (lambda f: write_idx(f / "train-images-idx3-ubyte.gz", np.zeros((2, 2), np.uint8)), r"images \[2, 2\]"),
    ],
)
def test_idx_files_that_do_not_fit_are_one_line(idx, change, message):
    change(idx)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load_split(idx, "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("n", [0, 59])
def test_too_few_training_images_are_one_line(idx, n):
    write_idx(idx / "train-images-idx3-ubyte.gz", np.zeros((n, 12, 12), np.uint8))
    write_idx(idx / "train-labels-idx1-ubyte.gz", np.zeros(n, np.uint8))
    with pytest.raises(ValueError, match=r"too few; 30 are held out|contain no images"):
        load_split(idx, "train")


# --- folders of images ------------------------------------------------------------------------------------------------


def test_a_folder_is_split_in_the_same_way_on_every_run_and_wherever_it_lies(photographs, tmp_path_factory):
    moved = tmp_path_factory.mktemp("elsewhere") / "copy"
    found = {split: load_split(photographs, split, (8, 8), 3) for split in images.SPLITS}
    photographs.rename(moved)
    for split, data in found.items():
        again = load_split(moved, split, (8, 8), 3)
        assert again.digest == data.digest
        assert data.images.shape[1:] == (8, 8, 3)
        assert data.classes == ("cat", "dog")
    assert sum(len(data) for data in found.values()) == 120


def test_an_image_more_leaves_the_others_where_they_were(photographs):
    names = [f.relative_to(photographs).as_posix() for f in photographs.rglob("*.png")]
    before = dict(zip(names, layout.assign(names), strict=True))
    Image.new("L", (8, 8)).save(photographs / "cat" / "new.png")
    assert dict(zip(names, layout.assign(names), strict=True)) == before
    assert set(before.values()) == set(images.SPLITS)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "truncated", "broken chunk"])
def test_an_unreadable_image_is_one_line(photographs, content):
    file = next(f for f in sorted(photographs.rglob("*.png")) if layout.assign([f"cat/{f.name}"]) == ["train"])
    whole = file.read_bytes()
    damaged = {"truncated": whole[:-40], "broken chunk": whole[:20] + b"\xff\xff" + whole[22:]}
    file.write_bytes(damaged[content] if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=f"{file.name} cannot be read as an image") as caught:
        load_split(photographs, "train", (8, 8), 3)
    assert "\n" not in str(caught.value)


def test_too_few_images_for_a_split_are_one_line(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name / "1.png")
    taken = {*layout.assign([f"{name}/1.png" for name in ("cat", "dog")])}
    for split in set(images.SPLITS) - taken:
        with pytest.raises(ValueError, match=f"none of its 2 images falls into the split '{split}'; add images"):
            load_split(tmp_path, split, (8, 8), 1)


@pytest.mark.parametrize("make", [lambda f: None, lambda f: (f / "cat").mkdir(), lambda f: (f / "a.txt").touch()])
def test_a_folder_without_images_is_one_line(tmp_path, make):
    make(tmp_path)
    with pytest.raises(ValueError, match="contains neither IDX files nor two sub-folders of images"):
        load_split(tmp_path, "train")


def test_folders_and_splits_that_are_not_there_are_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="--data takes a folder"):
        load_split(tmp_path / "nowhere", "train")
    with pytest.raises(ValueError, match="no split 'valid'; known: train, calibration, search, test"):
        load_split(tmp_path, "valid")
    with pytest.raises(ValueError, match="the shipped images have no training split"):
        load_split(None, "train")


GREY = np.repeat(np.linspace(0, 65535, 12).astype(np.uint16)[None], 8, axis=0)  # [8, 12], from black to white


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_read_by_their_upper_eight(tmp_path, suffix, channels):
    Image.fromarray(GREY).save(tmp_path / f"deep.{suffix}")
    Image.fromarray((GREY >> 8).astype(np.uint8)).save(tmp_path / "plain.png")
    files = (tmp_path / f"deep.{suffix}", tmp_path / "plain.png")
    deep, plain = (decoding.decode(file, (8, 12), channels) for file in files)
    assert np.array_equal(deep, plain)
    assert len(np.unique(deep)) == 12


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_pixels_of_32_bits_have_no_scale_and_are_one_line(tmp_path, kind):
    Image.fromarray(GREY.astype(kind)).save(tmp_path / "deep.tif")
    with pytest.raises(ValueError, match=r"deep.tif cannot be read as an image: its pixels have 32 bits"):
        decoding.decode(tmp_path / "deep.tif", (8, 12), 1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_photograph_is_turned_as_its_exif_tag_says(tmp_path, orientation, kind):
    upright = np.arange(96).reshape(8, 12).astype(kind) * (np.iinfo(kind).max // 96)
    held = {  # the image that a camera stores, for each of its eight orientations
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(held)).save(tmp_path / "photo.png", exif=exif)
    found = Preprocessing((8, 12), (8, 12), (0.0,), (1.0,)).read(tmp_path / "photo.png")
    eight = upright if kind is np.uint8 else upright >> 8
    assert np.array_equal(found[..., 0], eight)


def test_more_images_than_memory_holds_are_one_line(photographs):
    with pytest.raises(ValueError, match=r"images of 100000 x 100000 x 3 need \d+ GB; choose a smaller size"):
        load_split(photographs, "train", (100_000, 100_000), 3)


def test_a_task_takes_mean_and_deviation_from_its_training_images(idx):
    task = open_task(idx, size=12)
    pixels = task.splits["train"].images / 255
    assert task.preprocessing.mean == (round(float(pixels.mean()), 4),)
    assert task.preprocessing.std == (round(float(pixels.std()), 4),)
    (x,) = task.inputs(task.splits["train"].images, [(1, 12, 12)])
    assert abs(float(x.mean())) < 1e-3
    assert abs(float(x.std()) - 1) < 1e-3
