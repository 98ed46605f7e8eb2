"""Folders of image files as a source of examples.

``train, held = find_files(Path("imagenet"))``
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hnas.data.images import HELD, Labels
from hnas.data.layout import SHARES, SUFFIXES, is_hidden, split_of
from hnas.data.sources import TEST_FOLDERS, Example


@dataclass(frozen=True)
class Files:
    """Image files below ``root``.

    names: paths relative to ``root``, as bytes in one array: workers would copy a million separate strings.
    labels: int64 [N], indices into ``classes``.
    """

    root: str
    names: NDArray[np.bytes_]
    labels: Labels
    classes: tuple[str, ...]

    @property
    def units(self) -> int:
        """Return the number of files. It limits the number of lanes, because a lane needs at least one file."""
        return len(self)

    @cached_property
    def digest(self) -> str:
        """Return the sha256 of names, labels and classes."""
        found = hashlib.sha256(repr((self.names.shape, self.names.dtype.str, self.classes)).encode())
        found.update(self.names.tobytes())
        found.update(np.ascontiguousarray(self.labels, np.int64).tobytes())
        return found.hexdigest()

    def lanes(self, seed: int, epoch: int, of: int, own: Sequence[int], skip: int) -> list[Iterator[Example]]:
        """Return the lanes ``own`` of an epoch, each an endless stream.

        The files are permuted by seed and epoch. Lane i takes the i-th file and then every ``of``-th file.

        of: number of all lanes.
        own: the numbers of the lanes to return.
        skip: number of examples that each lane leaves out at its start.
        """
        order = np.random.default_rng([seed, 3, epoch]).permutation(len(self))
        return [self._lane(order[lane::of], skip) for lane in own]

    def examples(self) -> list[Example]:
        """Return all examples, in the order of the listing."""
        return [self._example(index) for index in range(len(self))]

    def among(self, chosen: Sequence[bool] | NDArray[np.bool_]) -> Files:
        """Return the files for which ``chosen`` is true."""
        mask = np.asarray(chosen, bool)
        return Files(self.root, self.names[mask], self.labels[mask], self.classes)

    def _lane(self, order: NDArray[np.int64], skip: int) -> Iterator[Example]:
        return (self._example(int(order[position % len(order)])) for position in count(skip))

    def _example(self, index: int) -> Example:
        name = self.names[index].decode("utf-8", "surrogateescape")
        return Example(f"{self.root}/{name}", int(self.labels[index]))

    def __len__(self) -> int:
        return len(self.labels)


def find_files(root: Path) -> tuple[Files, dict[str, Files]]:
    """Return the training files of a folder, and the files of each held-out split.

    1. root/CLASS/...: the files are divided as in case 3 of ``hnas.data.images.load_split``.
    2. root/train/CLASS/... and root/val/CLASS/...: val is the test split. The files of train with the lowest hashes of
       their names are held out: at most ``hnas.data.images.HELD`` files, and at most the shares of case 1.

    Raises:
        ValueError: a split would be empty, or train and val have different classes.
    """
    tests = [root / name for name in TEST_FOLDERS if (root / name).is_dir()]
    if not (root / "train").is_dir() or not tests:  # case 1
        listing = _listing(root)
        place = [split_of(name.decode("utf-8", "surrogateescape")) for name in listing.names.tolist()]
        parts = {split: listing.among([p == split for p in place]) for split in ("train", *SHARES)}
    else:  # case 2
        listing, test = _listing(root / "train"), _listing(tests[0])
        if test.classes != listing.classes:
            odd = sorted(set(test.classes) ^ set(listing.classes))
            differ = f"train and {tests[0].name} have different classes; {odd[0]} is in only one of them"
            raise ValueError(f"{root}: {differ}")
        parts = {"test": test, **_held_out(listing)}
    for split, found in parts.items():
        if not len(found):
            raise ValueError(f"{root}: none of its {len(listing)} images falls into the split {split!r}; add images")
    return parts.pop("train"), parts


def _held_out(listing: Files) -> dict[str, Files]:
    """Divide a training folder into calibration, search and train by the hashes of the names."""
    order = np.argsort([hashlib.sha256(name).digest() for name in listing.names.tolist()], kind="stable")
    places, parts, taken = np.arange(len(listing)), {}, 0
    for split, most in HELD.items():
        size = min(most, int(len(listing) * SHARES[split]))
        parts[split] = listing.among(np.isin(places, order[taken : taken + size]))
        taken += size
    parts["train"] = listing.among(np.isin(places, order[taken:]))
    return parts


def _listing(root: Path) -> Files:
    """List the images of every sub-folder of ``root``; a sub-folder is a class."""
    classes = tuple(sorted(f.name for f in root.iterdir() if f.is_dir() and not is_hidden(f.name)))
    names, labels = [], []
    for label, name in enumerate(classes):
        inside = _image_names(root, name)
        names += [inner.encode("utf-8", "surrogateescape") for inner in inside]
        labels += [label] * len(inside)
    if len(classes) < 2 or not names:
        found = f"{len(classes)} sub-folders with {len(names)} images"
        raise ValueError(f"{root} needs two or more sub-folders of images; found {found}")
    return Files(str(root), np.array(names), np.array(labels, np.int64), classes)


def _image_names(root: Path, name: str) -> list[str]:
    """Return the images of a class as paths relative to ``root``, in the order of their parts."""
    found = []
    for folder, folders, files in os.walk(root / name):  # pathlib takes minutes for a million files
        folders[:] = [each for each in folders if not is_hidden(each)]
        within, shown = folder[len(str(root)) + 1 :], [file for file in files if not is_hidden(file)]
        found += [f"{within}/{file}" for file in shown if f".{file.rpartition('.')[2].lower()}" in SUFFIXES]
    return sorted(found, key=lambda each: each.split("/"))
