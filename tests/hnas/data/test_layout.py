"""Test the layouts of image folders: hidden entries, split folders, transparent pixels."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hnas.data import layout
from hnas.data.decoding import open_image, refuse_broken
from hnas.data.folders import find_files
from hnas.data.images import SPLITS, load_split
from hnas.data.layout import Layout
from hnas.data.survey import read_splits


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


# --- folders as people have them --------------------------------------------------------------------------------------


def notes(folder: Path, **options: bool) -> str:
    return "\n".join(read_splits(folder, (8, 8), 1, **options)[1])


def test_hidden_entries_are_counted(tmp_path: Path) -> None:
    fill(tmp_path, 60)
    assert notes(tmp_path) == ""
    for name in ("._1.png", ".DS_Store", "cat/._0.png"):
        (tmp_path / name).touch()
    (tmp_path / "__MACOSX" / "cat").mkdir(parents=True)
    assert "4 hidden files and folders are left out" in notes(tmp_path)


def test_a_folder_around_the_classes_is_looked_into(tmp_path: Path) -> None:
    inner = fill(tmp_path / "photos" / "photos", 60)
    assert levels(tmp_path, "train") == levels(inner, "train")
    assert find_files(tmp_path)[0].digest == find_files(inner)[0].digest


@pytest.mark.parametrize("names", [("Training", "Valid"), ("train", "testing")])
def test_other_names_of_split_folders(tmp_path: Path, names: tuple[str, str]) -> None:
    fill(tmp_path / names[0], 60)
    fill(tmp_path / names[1], 5, level=200)
    assert levels(tmp_path, "test") == set(range(200, 210))


def test_readers_hold_out_the_same_files_and_no_more_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "train", 60)
    fill(tmp_path / "val", 5, level=200)
    fill(tmp_path / "test", 5, level=220)
    for most in (1000, 2):
        monkeypatch.setitem(layout.HELD, "calibration", most)
        train, held = find_files(tmp_path)
        for split, part in {"train": train, **held}.items():
            assert [example.name for example in part.examples()] == [
                str(file) for file, _ in Layout.read(tmp_path).files(split)
            ]
    assert len(held["calibration"]) == 2


def test_unreadable_images_are_named_all_at_once_or_left_out(tmp_path: Path) -> None:
    fill(tmp_path, 60)
    whole = sum(len(load_split(tmp_path, split, (8, 8), 1)) for split in SPLITS)
    for number in range(40):
        (tmp_path / "cat" / f"{number}.png").write_bytes(b"no image")
    (tmp_path / "dog" / "\x1b[2J\n.png").write_bytes(b"no image")
    with pytest.raises(
        ValueError, match=r"^41 images cannot be read: .*; remove them, or train with --skip-broken$"
    ) as e:
        read_splits(tmp_path, (8, 8), 1)
    assert all(re.search(rf"cat/{number}\.png(, | cannot be read)", str(e.value)) for number in range(40))
    assert r"dog/\x1b[2J\n.png; remove them" in str(e.value)
    data, _, skipped = read_splits(tmp_path, (8, 8), 1, skip=True)
    assert (sum(map(len, data.values())), skipped) == (whole - 40, 41)
    said = notes(tmp_path, skip=True)
    assert "41 images that cannot be read are left out: " in said
    assert all(re.search(rf"cat/{number}\.png(, | cannot be read)", said) for number in range(40))
    assert r"dog/\x1b[2J\n.png" in said


def test_beyond_200_unreadable_images_are_counted() -> None:
    with pytest.raises(ValueError, match=r"^203 images cannot be read: ") as caught:
        refuse_broken([f"{number}.png cannot be read as an image: cut" for number in range(203)])
    assert str(caught.value).count(".png") == 200
    assert "199.png, and 3 more; remove them" in str(caught.value)


def test_transparency_is_said_once(tmp_path: Path) -> None:
    fill(tmp_path, 60)
    for number in (1, 2):
        Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "cat" / f"{number}.png")
    Image.new("L", (8, 8), 0).save(tmp_path / "cat" / "2.png")
    assert "1 images may have transparent pixels; those become white" in notes(tmp_path)


def test_small_classes_are_named_and_empty_ones_refused(tmp_path: Path) -> None:
    fill(tmp_path, 60)
    fill(tmp_path, 9, classes=("eel",))
    assert "fewer than 20 training images in eel (" in notes(tmp_path)
    (tmp_path / "fox").mkdir()
    with pytest.raises(ValueError, match="no training images in fox; add images, or remove the class"):
        notes(tmp_path)


def test_copies_in_two_splits_are_named(tmp_path: Path) -> None:
    fill(tmp_path / "train", 60)
    fill(tmp_path / "test", 5, level=200)
    assert notes(tmp_path) == ""
    (tmp_path / "test" / "dog" / "0.png").write_bytes((tmp_path / "train" / "dog" / "7.png").read_bytes())
    assert "1 images are in two splits" in notes(tmp_path)
    assert "train/dog/7.png (" in notes(tmp_path)
    assert ") = test/dog/0.png (test)" in notes(tmp_path)
    for number in range(20, 30):
        original = tmp_path / "train" / "cat" / f"{number}.png"
        (tmp_path / "test" / "cat" / f"{number}.png").write_bytes(original.read_bytes())
    assert all(f") = test/cat/{number}.png (test)" in notes(tmp_path) for number in range(20, 30))


@pytest.mark.parametrize("given", [False, True])
def test_a_csv_file_names_paths_labels_and_splits(tmp_path: Path, given: bool) -> None:
    fill(tmp_path, 60)
    head = "path,label,split\n" if given else "path,label\n"
    split = ",test" if given else ""
    rows = [(name, i) for name in ("cat", "dog") for i in range(60)]
    lines = [f"{name}/{i}.png,{name}{split * (i < 5)}\n" for name, i in rows]
    (tmp_path / "labels.csv").write_text(head + "".join(lines))
    for split in SPLITS:
        found = load_split(tmp_path / "labels.csv", split, (8, 8), 1)
        assert found.classes == ("cat", "dog")
        if not given:
            assert levels(tmp_path / "labels.csv", split) == levels(tmp_path, split)
    if given:
        assert levels(tmp_path / "labels.csv", "test") == {*range(5), *range(60, 65)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs a first line path,label"),
        ("file,class\na,b\n", "needs a first line path,label .* found file, class"),
        ("path,label\na.png,cat\nb.png,\n", "1 lines lack a path or a label, the first is 'b.png'"),
        ("path,label\na.png,cat\n", "needs two or more labels; found 1"),
        ("path,label,split\na,cat,x\nb,dog,y\n", "has the split 'x'; known: train"),
    ],
)
def test_a_csv_file_of_something_else_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_split(tmp_path / "labels.csv", "train", (8, 8), 1)


def test_names_in_any_encoding(tmp_path: Path) -> None:
    fill(tmp_path, 60, classes=("caf\udce9", "e\u0301t\u00e9", "x"))
    data, _, _ = read_splits(tmp_path, (8, 8), 1)
    assert data["train"].classes == ("caf\ufffd", "e\u0301t\u00e9", "x")
    composed = layout.assign([f"\u00e9/{i}" for i in range(99)])
    assert composed == layout.assign([f"e\u0301/{i}" for i in range(99)])


def test_added_files_move_others_only_into_train_and_only_above_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"cat/{number}.png" for number in range(2000)]
    assert layout.assign(names)[:1000] == layout.assign(names[:1000])
    monkeypatch.setattr(layout, "HELD", {"calibration": 20, "search": 40})
    pairs = zip(layout.assign(names[:1000]), layout.assign(names), strict=False)
    assert {pair for pair in pairs if pair[0] != pair[1]} == {("calibration", "train"), ("search", "train")}
