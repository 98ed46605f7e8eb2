"""Read all splits of a data set at once, and say what a person should know about its files.

``data, notes, skipped = read_splits(Path("photos"), (64, 64), 3)``
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hnas.data.decoding import NAMED, name_broken
from hnas.data.images import SPLITS, ImageData, decode_splits, is_image_files, load_splits
from hnas.data.layout import Layout

FEW = 20  # training images of a class; below it a class is named


def read_splits(
    folder: Path | None, size: tuple[int, int], channels: int, *, skip: bool = False
) -> tuple[dict[str, ImageData], tuple[str, ...], int]:
    """Return the images of all splits, notes for a person, and the number of unreadable images that were left out.

    folder, size, channels: as ``hnas.data.images.load_split`` takes them.
    skip: leave out unreadable images (False).

    Raises:
        FileNotFoundError: the folder or a file is missing.
        ValueError: a file is malformed, a split or a class has no images, or images cannot be read and ``skip`` is not
            set; the message names all of them, up to 200.
    """
    if folder is None or not is_image_files(folder):
        return load_splits(folder, SPLITS, size, channels), (), 0
    layout = Layout.read(folder)
    found = decode_splits(folder, layout, SPLITS, size, channels, skip=skip)
    notes = [
        *_hidden(layout),
        *_broken(found.broken),
        *_transparent(found.files),
        *_few(folder, found.data),
        *_twice(layout.root, found.files),
    ]
    return found.data, tuple(notes), len(found.broken)


def _hidden(layout: Layout) -> list[str]:
    count = layout.hidden
    return [f"{count} hidden files and folders are left out (.*, ._*, __MACOSX)"] if count else []


def _broken(reasons: list[str]) -> list[str]:
    return [f"{len(reasons)} images that cannot be read are left out: {name_broken(reasons)}"] if reasons else []


def _transparent(parts: Mapping[str, Sequence[Path]]) -> list[str]:
    """Return a note if images have transparent pixels."""
    found = [file for files in parts.values() for file in files if _has_transparency(file)]
    return [f"{len(found)} images may have transparent pixels; those become white"] if found else []


def _has_transparency(file: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(file) as image:  # reads the header only
            return image.has_transparency_data
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False


def _few(folder: Path, data: Mapping[str, ImageData]) -> list[str]:
    """Return a note on classes with few images. Raise ValueError for a class without training images."""
    classes = data["train"].classes
    counts = {split: np.bincount(held.labels, minlength=len(classes)) for split, held in data.items()}
    if empty := [name for name, count in zip(classes, counts["train"], strict=True) if not count]:
        raise ValueError(f"{folder}: no training images in {_some(empty)}; add images, or remove the class")
    few = [f"{name} ({count})" for name, count in zip(classes, counts["train"], strict=True) if count < FEW]
    unseen = [name for i, name in enumerate(classes) if not counts["test"][i] or not counts["search"][i]]
    notes = [f"fewer than {FEW} training images in {_some(few)}: expect errors there"] if few else []
    return notes + ([f"no test or search images of {_some(unseen)}: accuracy does not count them"] if unseen else [])


def _twice(root: Path, parts: Mapping[str, Sequence[Path]]) -> list[str]:
    """Return a note on files with equal bytes in different splits. Files of a size of their own are not read."""
    listed = [(split, file, file.stat().st_size) for split, files in parts.items() for file in files]
    sizes = Counter(size for *_, size in listed)
    seen: dict[bytes, tuple[str, Path]] = {}
    found = []
    for split, file, size in listed:
        if sizes[size] == 1:
            continue
        first = seen.setdefault(_digest(file), (split, file))
        if first[0] != split:
            found.append(f"{_shown(first[1], root)} ({first[0]}) = {_shown(file, root)} ({split})")
    return [f"{len(found)} images are in two splits, so accuracies are too high: {_some(found)}"] if found else []


def _digest(file: Path) -> bytes:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _shown(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)


def _some(names: list[str]) -> str:
    """Return the first 200 names, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
