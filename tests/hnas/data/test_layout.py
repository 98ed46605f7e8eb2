"""Test the layouts of image folders: hidden entries, split folders, transparent pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hnas.data.folders import find_files
from hnas.data.images import SPLITS, load_split, open_image


def fill(folder: Path, count: int, classes: tuple[str, ...] = ("cat", "dog"), level: int = 0) -> Path:
    """Write ``count`` grey images a class; every image has its own grey value, from ``level``."""
    for index, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (8, 8), level + index * count + number).save(folder / name / f"{number}.png")
    return folder


def levels(folder: Path, split: str) -> set[int]:
    """The grey values of the images of a split, which tell them apart."""
    return set(load_split(folder, split, (8, 8), 1).images[:, 0, 0, 0].tolist())


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints/9.png", "._1.png", "__MACOSX/cat/9.png", ".a/b/9.png"])
def test_hidden_entries_are_no_images(tmp_path: Path, hidden: str) -> None:
    fill(tmp_path, 60)
    before = {split: load_split(tmp_path, split, (8, 8), 1).digest for split in SPLITS}
    streamed = find_files(tmp_path)[0].digest
    for place in (tmp_path / "cat" / hidden, tmp_path / hidden):
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 255).save(place)
    assert {split: load_split(tmp_path, split, (8, 8), 1).digest for split in SPLITS} == before
    assert find_files(tmp_path)[0].digest == streamed


@pytest.mark.parametrize("name", ["val", "validation", "test"])
def test_a_folder_beside_train_is_the_test_split(tmp_path: Path, name: str) -> None:
    fill(tmp_path / "train", 60)
    fill(tmp_path / name, 5, level=200)
    found = {split: levels(tmp_path, split) for split in SPLITS}
    assert found.pop("test") == set(range(200, 210))
    assert set().union(*found.values()) == set(range(120))
    assert sum(map(len, found.values())) == 120
    assert load_split(tmp_path, "test", (8, 8), 1).classes == ("cat", "dog")


def test_val_steers_the_search_where_there_is_a_test_folder(tmp_path: Path) -> None:
    fill(tmp_path / "train", 60)
    fill(tmp_path / "val", 5, level=200)
    fill(tmp_path / "test", 5, level=220)
    found = {split: levels(tmp_path, split) for split in SPLITS}
    assert (found["search"], found["test"]) == (set(range(200, 210)), set(range(220, 230)))
    assert found["train"] | found["calibration"] == set(range(120))


def test_classes_that_are_called_train_and_test_are_classes(tmp_path: Path) -> None:
    """No class folders lie inside of ``train`` here."""
    fill(tmp_path, 40, classes=("test", "train"))
    assert load_split(tmp_path, "train", (8, 8), 1).classes == ("test", "train")


def test_split_folders_with_other_classes_are_one_line(tmp_path: Path) -> None:
    fill(tmp_path / "train", 40)
    fill(tmp_path / "val", 5, classes=("cat", "fox"))
    with pytest.raises(ValueError, match=r"train and val have different classes; dog is in only one of them"):
        load_split(tmp_path, "test", (8, 8), 1)


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "PA-like gif"])
def test_transparent_pixels_are_white_whatever_colour_lies_under_them(tmp_path: Path, kind: str) -> None:
    """An image that looks red on nothing, saved in every way that has transparency, with colours under it."""
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[..., :3] = np.random.default_rng(0).integers(0, 255, (8, 8, 3))
    pixels[2:6, 2:6] = (200, 200, 200, 255) if kind == "LA" else (200, 0, 0, 255)
    file = tmp_path / ("a.gif" if "gif" in kind else "a.png")
    if kind in ("RGBA", "LA"):
        Image.fromarray(pixels, "RGBA").convert(kind).save(file)
    else:
        image = Image.new("P", (8, 8), 0)
        image.putpalette([0, 255, 0, 200, 0, 0] + [0] * 750)
        image.paste(1, (2, 2, 6, 6))
        image.save(file, transparency=0)
    found = np.asarray(open_image(file, 3))
    assert (found[0, 0].tolist(), found[7, 7].tolist()) == ([255] * 3, [255] * 3)
    assert found[3, 3].tolist() == ([200] * 3 if kind == "LA" else [200, 0, 0])
