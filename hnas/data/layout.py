"""Read the layout of a folder of images: which sub-folders are classes or splits, and which file is in which split.

``Layout.read(Path("photos")).files("test")`` returns the test images with their labels.
"""

from __future__ import annotations

import csv
import hashlib
import os
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Of a folder: the share of each held-out split, chosen by a hash of the file name. The rest is for training.
SHARES = {"test": 0.10, "search": 0.10, "calibration": 0.05}
# At most so many images of a training set are held out for a split; the rest of its share is for training.
HELD = {"calibration": 1000, "search": 2000}
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"}
_TRAIN = ("train", "training")
_TESTS = ("test", "testing", "val", "valid", "validation")  # the first one found is the test split

Labelled = list[tuple[Path, int]]  # image files with their labels, indices into the classes


@dataclass(frozen=True)
class Layout:
    """The image files of a data set and the split of each.

    root: the names of files are relative to this folder.
    classes: the class names, in label order.
    parts: split -> its image files with their labels.
    hidden: the number of hidden files and folders that were skipped.
    """

    root: Path
    classes: tuple[str, ...]
    parts: Mapping[str, Labelled]
    hidden: int = 0

    @classmethod
    def read(cls, folder: Path) -> Layout:
        """Return the layout of a folder or of a CSV file.

        The cases have the numbers of ``hnas.data.images.load_split``.

        Raises:
            ValueError: there are no classes or no images, two split folders have different classes, or the CSV file is
                malformed.
        """
        if folder.is_file():  # case 5
            return _read_csv(folder)
        found = list_folders(folder)  # cases 3 and 4
        parts: dict[str, Labelled] = {split: [] for split in ("train", *SHARES)}
        for pair, place in zip(found.train.files(), found.places, strict=True):
            parts[place].append(pair)
        parts |= {split: listing.files() for split, listing in found.held.items()}
        return cls(found.root, found.train.classes, parts, found.hidden)

    def files(self, split: str) -> Labelled:
        """Return the files of a split. Raise ValueError if there are none."""
        if not self.parts[split]:
            count = sum(map(len, self.parts.values()))
            raise ValueError(f"{self.root}: none of its {count} images falls into the split {split!r}; add images")
        return self.parts[split]


@dataclass(frozen=True)
class Listing:
    """The image files of a folder whose sub-folders are the classes.

    names: paths relative to ``root``; text, because a million objects of pathlib take minutes.
    labels: of each file, indices into ``classes``.
    hidden: the number of hidden files and folders that were skipped.
    """

    root: Path
    classes: tuple[str, ...]
    names: list[str]
    labels: list[int]
    hidden: int = 0

    def files(self) -> Labelled:
        """Return the files with their labels."""
        return [(self.root / name, label) for name, label in zip(self.names, self.labels, strict=True)]


@dataclass(frozen=True)
class Folders:
    """The listings of a data set.

    root: the folder, without those that an archive puts around it.
    train: the training set.
    places: the split of each file of ``train``.
    held: the listings of the splits that have a folder of their own.
    """

    root: Path
    train: Listing
    places: list[str]
    held: dict[str, Listing]
    hidden: int


def list_folders(folder: Path) -> Folders:
    """Return the image files of a folder and their splits: the cases 3 and 4 of ``hnas.data.images.load_split``.

    Raises:
        ValueError: there are no classes or no images, or two split folders have different classes.

    Example: ``list_folders(Path("photos")).train.names``
    """
    root, skipped = _unwrapped(folder)
    own = _split_folders(root)
    train = _list_classes(own.pop("train", root))
    held = {split: _list_classes(each) for split, each in own.items()}
    for each in held.values():
        if odd := set(train.classes) ^ set(each.classes):
            only = f"{min(odd)} is in only one of them"
            raise ValueError(f"{root}: {train.root.name} and {each.root.name} have different classes; {only}")
    hidden = skipped + sum(each.hidden for each in (train, *held.values()))
    return Folders(root, train, assign(train.names, own), held, hidden)


def assign(names: Sequence[str], own: Collection[str] = ()) -> list[str]:
    """Return the split of each file of a training set, by the hash of its name.

    own: the splits that have files of their own; the set gives none for them.
    At most ``HELD`` files are held out for a split, those with the lowest hashes.
    """
    hashes = [_hash(name) for name in names]
    found = ["train" if (split := _split(value)) in own else split for value in hashes]
    for split, most in HELD.items():
        taken = sorted((i for i, place in enumerate(found) if place == split), key=hashes.__getitem__)
        for i in taken[most:]:
            found[i] = "train"
    return found


def _hash(name: str) -> float:
    # macOS stores decomposed letters: the same folder on Linux has the same splits.
    text = unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64


def _split(share: float) -> str:
    for split, width in SHARES.items():
        if share < width:
            return split
        share -= width
    return "train"


def _split_folders(folder: Path) -> dict[str, Path]:
    """Return split -> folder where ``folder`` has a folder of classes for training; empty for another layout.

    If there are both a test and a validation folder, validation is the split "search".
    """
    found = {f.name.lower(): f for f in _folders(folder)}
    train = next((found.pop(name) for name in _TRAIN if name in found), None)
    held = [found.pop(name) for name in _TESTS if name in found]
    if train is None or found or len(held) > 2 or len(_folders(train)) < 2:
        return {}
    return {"train": train, **dict(zip(("test", "search"), held, strict=False))}


def _is_hidden(name: str) -> bool:
    """Return whether a name is not the user's data: a hidden file or folder, or the metadata folder of macOS."""
    return name.startswith(".") or name == "__MACOSX"


def _walk_images(root: Path, name: str) -> tuple[list[str], int]:
    """Return the images below ``root/name`` as paths relative to ``root``, and the number of hidden entries.

    The images are in the order of the parts of their paths.
    """
    found, hidden = [], 0
    for folder, folders, files in os.walk(root / name):  # pathlib takes minutes for a million files
        hidden += sum(map(_is_hidden, (*folders, *files)))
        folders[:] = [each for each in folders if not _is_hidden(each)]
        within, shown = folder[len(str(root)) + 1 :], [file for file in files if not _is_hidden(file)]
        found += [f"{within}/{file}" for file in shown if f".{file.rpartition('.')[2].lower()}" in SUFFIXES]
    return sorted(found, key=lambda each: each.split("/")), hidden


def _folders(folder: Path) -> list[Path]:
    return sorted((f for f in folder.iterdir() if f.is_dir() and not _is_hidden(f.name)), key=lambda f: f.name)


def _unwrapped(folder: Path) -> tuple[Path, int]:
    """Return the folder with the classes: archives often hold one folder around everything. Count hidden entries."""
    inner, hidden = _folders(folder), sum(_is_hidden(f.name) for f in folder.iterdir())
    if len(inner) == 1 and _folders(inner[0]):
        if inner[0].name.lower() in _TRAIN:  # _split_folders reads it
            return folder, hidden
        within, more = _unwrapped(inner[0])
        return within, hidden + more
    return folder, hidden


def _list_classes(root: Path) -> Listing:
    """Return the images of a folder whose sub-folders are the classes."""
    folders = [f.name for f in _folders(root)]
    names: list[str] = []
    labels: list[int] = []
    hidden = 0
    for label, name in enumerate(folders):
        inside, more = _walk_images(root, name)
        names += inside
        labels += [label] * len(inside)
        hidden += more
    if len(folders) < 2 or not names:
        found = f"{len(folders)} sub-folders with {len(names)} images"
        raise ValueError(f"{root} contains neither IDX files nor two sub-folders of images; found {found}")
    return Listing(root, tuple(map(_class_name, folders)), names, labels, hidden)


def _class_name(folder: str) -> str:
    """Return the name of a class folder as text; bytes that are not UTF-8 become replacement characters."""
    return folder.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _read_csv(file: Path) -> Layout:
    """Return the layout that a CSV file names: columns path and label, and optionally split."""
    rows = _rows(file)
    classes = tuple(sorted({row["label"] for row in rows}))
    if len(classes) < 2:
        raise ValueError(f"{file} needs two or more labels; found {len(classes)}")
    parts: dict[str, Labelled] = {split: [] for split in ("train", *SHARES)}
    places = _divided([row["path"] for row in rows], _splits(file, rows))
    for row, place in zip(rows, places, strict=True):
        parts[place].append((file.parent / row["path"], classes.index(row["label"])))
    return Layout(file.parent, classes, parts)


def _rows(file: Path) -> list[dict[str, str]]:
    """Return the lines of a CSV file of images. Raise ValueError if it is another file."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file} cannot be read as CSV: {error}") from None
    if not rows or not {"path", "label"} <= set(rows[0]):
        known = ", ".join(map(str, rows[0])) if rows else "nothing"
        raise ValueError(f"{file} needs a first line path,label (and optionally split) and images; found {known}")
    if lacking := [row["path"] for row in rows if not row["path"] or not row["label"]]:
        raise ValueError(f"{file}: {len(lacking)} lines lack a path or a label, the first is {lacking[0] or 'empty'!r}")
    return rows


def _splits(file: Path, rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the split that each line of a CSV file names, "" for none. Raise ValueError for an unknown name.

    As of folders, validation is the split "search" if there is a test split, else it is the test split.
    """
    names = [(row.get("split") or "").strip().lower() for row in rows]
    validation = "search" if {*_TESTS[:2]} & {*names} else "test"
    known = dict.fromkeys(_TRAIN, "train") | dict.fromkeys(_TESTS[:2], "test")
    known |= dict.fromkeys(_TESTS[2:], validation) | {"search": "search", "calibration": "calibration"}
    for row, name in zip(rows, names, strict=True):
        if name and name not in known:
            raise ValueError(f"{file} has the split {row['split']!r}; known: {', '.join(known)}")
    return [known.get(name, "") for name in names]


def _divided(names: Sequence[str], splits: Sequence[str]) -> list[str]:
    """Return a split for each file.

    1. Files without a split are divided over the splits that have no files.
    2. Files of the training set give those splits that still have none.
    """
    places = list(splits)
    for waiting in ("", "train"):
        chosen = [i for i, place in enumerate(places) if place == waiting]
        for i, place in zip(chosen, assign([names[i] for i in chosen], {*places}), strict=True):
            places[i] = place
    return places
