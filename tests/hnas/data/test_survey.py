"""Test what is said about the files of a data set, and that each is listed once."""

from __future__ import annotations

from pathlib import Path

import pytest

from hnas.data import survey
from hnas.data.images import Preprocessing
from hnas.data.layout import Layout
from hnas.data.survey import read_splits
from hnas.tasks.classification import open_held_out
from tests.hnas.data.test_layout import fill, levels, notes


def labels_of(folder: Path) -> Path:
    """Write a CSV file that names every image below ``folder``, and one that does not exist."""
    names = [f"{name}/{i}.png,{name}" for name in ("cat", "dog") for i in range(60)]
    (folder / "labels.csv").write_text("\n".join(["path,label", *names, "cat/missing.png,cat"]) + "\n")
    return folder / "labels.csv"


def test_a_csv_file_that_names_a_missing_file_is_read_without_it(tmp_path: Path) -> None:
    file = labels_of(fill(tmp_path, 60))
    with pytest.raises(ValueError, match=r"missing\.png cannot be read"):
        read_splits(file, (8, 8), 1)
    data, said, left_out = read_splits(file, (8, 8), 1, skip=True)
    assert (sum(map(len, data.values())), left_out) == (120, 1)
    assert "1 images that cannot be read are left out" in said[0]


def named(folder: Path, splits: dict[str, range]) -> Path:
    """Write a CSV file that names the split of some of 120 images, whose grey values are their numbers."""
    place = {number: split for split, numbers in splits.items() for number in numbers}
    own = [("cat" if i < 60 else "dog", i) for i in range(120)]
    rows = [f"{name}/{i % 60}.png,{name},{place.get(i, '')}" for name, i in own]
    (folder / "labels.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    return folder / "labels.csv"


@pytest.mark.parametrize("name", ["val", "valid", "Validation"])
def test_validation_of_a_csv_file_is_read_as_a_validation_folder(tmp_path: Path, name: str) -> None:
    fill(tmp_path, 60)
    alone = named(tmp_path, {"train": range(50, 120), name: range(50)})
    assert levels(alone, "test") == {*range(50)}
    assert levels(alone, "search") | levels(alone, "calibration") | levels(alone, "train") == {*range(50, 120)}
    both = named(tmp_path, {"train": range(50, 120), name: range(25), "test": range(25, 50)})
    assert (levels(both, "search"), levels(both, "test")) == ({*range(25)}, {*range(25, 50)})


def test_images_that_a_csv_file_puts_into_train_stay_there(tmp_path: Path) -> None:
    file = named(fill(tmp_path, 60), {"train": range(60)})
    assert {*range(60)} < levels(file, "train")
    for split in ("test", "search", "calibration"):
        assert levels(file, split) < {*range(60, 120)}


def test_images_of_train_give_only_the_splits_that_would_be_empty(tmp_path: Path) -> None:
    file = named(fill(tmp_path, 60), {"train": range(100), "search": range(100, 110), "calibration": range(110, 120)})
    assert (levels(file, "search"), levels(file, "calibration")) == ({*range(100, 110)}, {*range(110, 120)})
    assert levels(file, "test")
    assert levels(file, "test") | levels(file, "train") == {*range(100)}


def test_broken_copies_are_in_no_split(tmp_path: Path) -> None:
    fill(tmp_path / "train", 60)
    fill(tmp_path / "test", 5, level=200)
    for split in ("train", "test"):
        (tmp_path / split / "cat" / "0.png").write_bytes(b"no image")
    assert "2 images that cannot be read are left out" in notes(tmp_path, skip=True)
    assert "two splits" not in notes(tmp_path, skip=True)


def test_only_files_of_equal_size_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, 60)
    for number, file in enumerate(sorted(tmp_path.rglob("*.png"))):
        file.write_bytes(file.read_bytes() + b"-" * 20 * number)  # bytes after the end of a PNG are not read
    copy = tmp_path / "dog" / "copy.png"
    copy.write_bytes((tmp_path / "cat" / "0.png").read_bytes())
    digest, read = survey._digest, []
    monkeypatch.setattr(survey, "_digest", lambda file: read.append(file) or digest(file))
    read_splits(tmp_path, (8, 8), 1)
    assert sorted(read) == [tmp_path / "cat" / "0.png", copy]


def test_held_out_images_are_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, 60)
    listed: list[Path] = []
    read = Layout.read
    monkeypatch.setattr(Layout, "read", lambda folder: listed.append(folder) or read(folder))
    task = open_held_out(tmp_path, Preprocessing((8, 8), (8, 8), (0.5,), (0.5,)), "images")
    assert (set(task.splits), listed) == ({"calibration", "search", "test"}, [tmp_path])
