"""Read the layout of a folder of images: which sub-folders are classes or splits, and which file is in which split.

``classes, files, chosen = choose_files(Path("photos"), "test")``
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from hnas.data.sources import TEST_FOLDERS

# Of a folder: the share of each held-out split, chosen by a hash of the file name. The rest is for training.
SHARES = {"test": 0.10, "search": 0.10, "calibration": 0.05}
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"}

Labelled = list[tuple[Path, int]]  # image files with their labels, indices into the classes


def choose_files(folder: Path, split: str) -> tuple[tuple[str, ...], Labelled, Labelled]:
    """Return the classes, all files that the split is chosen from, and the files of the split.

    The cases have the numbers of ``hnas.data.images.load_split``.

    Raises:
        ValueError: there are no classes or no images, or two split folders have different classes.
    """
    parts = _split_folders(folder)
    if not parts:  # case 3
        classes, files = _list_files(folder)
        return classes, files, [(f, c) for f, c in files if split_of(f.relative_to(folder).as_posix()) == split]
    train = folder / "train"  # case 4
    classes, files = _list_files(train)
    if (own := parts.get(split)) is not None:
        named, held = _list_files(own)
        if named != classes:
            odd = min(set(named) ^ set(classes))
            raise ValueError(f"{folder}: train and {own.name} have different classes; {odd} is in only one of them")
        return classes, held, held
    places = [split_of(f.relative_to(train).as_posix()) for f, _ in files]
    return classes, files, [pair for pair, place in zip(files, places, strict=True) if _place(place, parts) == split]


def _place(split: str, parts: Mapping[str, Path]) -> str:
    """Return the final split of a file in ``train``: a split with a separate folder gets no file from ``train``."""
    return "train" if split in parts else split


def _split_folders(folder: Path) -> dict[str, Path]:
    """Return split -> folder for the splits with a folder beside ``train``; empty for another layout."""
    names = {f.name for f in folder.iterdir() if f.is_dir() and not is_hidden(f.name)}
    held = [name for name in reversed(TEST_FOLDERS) if name in names]
    if not held or names != {"train", *held} or len([f for f in (folder / "train").iterdir() if f.is_dir()]) < 2:
        return {}
    return {split: folder / name for split, name in zip(("test", "search"), held, strict=False)}


def is_hidden(name: str) -> bool:
    """Return whether a name is not the user's data: a hidden file or folder, or the metadata folder of macOS."""
    return name.startswith(".") or name == "__MACOSX"


def _list_files(folder: Path) -> tuple[tuple[str, ...], Labelled]:
    """Return the classes, which are the sub-folders, and each image file with its label. Skip hidden files."""
    classes = tuple(sorted(f.name for f in folder.iterdir() if f.is_dir() and not is_hidden(f.name)))
    inside = [(f, c) for c, name in enumerate(classes) for f in sorted((folder / name).rglob("*"))]
    shown = [(f, c) for f, c in inside if not any(map(is_hidden, f.relative_to(folder).parts))]
    files = [(f, c) for f, c in shown if f.suffix.lower() in SUFFIXES]
    if len(classes) < 2 or not files:
        found = f"{len(classes)} sub-folders with {len(files)} images"
        raise ValueError(f"{folder} contains neither IDX files nor two sub-folders of images; found {found}")
    return classes, files


def split_of(name: str) -> str:
    """Return the split of a file, chosen by a hash of ``name``: the file name relative to the data folder."""
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    for split, width in SHARES.items():
        if share < width:
            return split
        share -= width
    return "train"
