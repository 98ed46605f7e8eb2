"""Folders of image files as a source of examples.

``train, held = find_files(Path("imagenet"))``
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hnas.data.images import Labels
from hnas.data.layout import SHARES, Listing, list_folders
from hnas.data.sources import Example


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

    The files are divided as in the cases 3 and 4 of ``hnas.data.images.load_split``.

    Raises:
        ValueError: there are no classes or images, a split would be empty, or train and val have different classes.
    """
    found = list_folders(root)
    listing = _files(found.train)
    parts = {split: listing.among([place == split for place in found.places]) for split in ("train", *SHARES)}
    parts |= {split: _files(held) for split, held in found.held.items()}
    for split, part in parts.items():
        if not len(part):
            raise ValueError(f"{root}: none of its {len(listing)} images falls into the split {split!r}; add images")
    return parts.pop("train"), parts


def _files(listing: Listing) -> Files:
    names = np.array([name.encode("utf-8", "surrogateescape") for name in listing.names])
    return Files(str(listing.root), names, np.array(listing.labels, np.int64), listing.classes)
