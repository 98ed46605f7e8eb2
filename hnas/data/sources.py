"""Where the images of a data set that is larger than memory lie: folders of files, and tar shards of WebDataset.

They are listed, never loaded. The order of an epoch is dealt to *lanes*: streams that depend on seed and epoch alone,
however many processes and workers read them, so that every batch is the same with any number of either.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hnas.data.images import HELD, SHARES, SUFFIXES, Labels, split_of
from hnas.files import read_json

BUFFER = 512  # examples that a lane of shards holds back and mixes; places in the shard, not pixels
LARGEST = 64 << 20  # bytes of one image in a shard; more is a mistake or an attack
_TESTS = ("val", "validation", "test")  # what the folder beside "train" may be called


class Example(NamedTuple):
    """One image that has not been read: ``length`` bytes at ``offset`` of a file (length -1: the whole file)."""

    file: str
    label: int
    offset: int = 0
    length: int = -1
    member: str = ""

    @property
    def name(self) -> str:
        """What an error calls it."""
        return f"{self.file}: {self.member}" if self.member else self.file


class Source(Protocol):
    """The training images of a data set."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in label order."""
        ...

    @property
    def units(self) -> int:
        """How many lanes there can be."""
        ...

    @property
    def digest(self) -> str:
        """sha256 of the listing: names, sizes of shards and classes, not pixels."""
        ...

    def lanes(self, seed: int, epoch: int, of: int, own: Sequence[int], skip: int) -> list[Iterator[Example]]:
        """The endless streams ``own`` out of ``of`` lanes in an epoch, without their first ``skip`` examples each."""
        ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Files:
    """Image files below ``root``; names are bytes in one array, since workers would copy a million strings."""

    root: str
    names: NDArray[np.bytes_]
    labels: Labels
    classes: tuple[str, ...]

    @property
    def units(self) -> int:
        """One file is the least a lane can have."""
        return len(self)

    @cached_property
    def digest(self) -> str:
        """sha256 of names, labels and classes."""
        found = hashlib.sha256(repr((self.names.shape, self.names.dtype.str, self.classes)).encode())
        found.update(self.names.tobytes())
        found.update(np.ascontiguousarray(self.labels, np.int64).tobytes())
        return found.hexdigest()

    def lanes(self, seed: int, epoch: int, of: int, own: Sequence[int], skip: int) -> list[Iterator[Example]]:
        """One permutation of all files, dealt in turn."""
        order = np.random.default_rng([seed, 3, epoch]).permutation(len(self))
        return [self._lane(order[lane::of], skip) for lane in own]

    def examples(self) -> list[Example]:
        """All of them, in the order of the listing."""
        return [self._example(index) for index in range(len(self))]

    def _lane(self, order: NDArray[np.int64], skip: int) -> Iterator[Example]:
        return (self._example(int(order[position % len(order)])) for position in count(skip))

    def _example(self, index: int) -> Example:
        name = self.names[index].decode("utf-8", "surrogateescape")
        return Example(f"{self.root}/{name}", int(self.labels[index]))

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Shards:
    """Tar files that hold an image and its class number as neighbours: 0001.jpg, 0001.cls (WebDataset).

    sizes: examples in each. They are only ever read from front to back; nothing is unpacked.
    """

    files: tuple[str, ...]
    sizes: tuple[int, ...]
    classes: tuple[str, ...]

    @property
    def units(self) -> int:
        """One shard is the least a lane can have."""
        return len(self.files)

    @cached_property
    def digest(self) -> str:
        """sha256 of names and sizes of the shards, and of the classes."""
        names = [Path(file).name for file in self.files]
        return hashlib.sha256(repr((names, self.sizes, self.classes)).encode()).hexdigest()

    def lanes(self, seed: int, epoch: int, of: int, own: Sequence[int], skip: int) -> list[Iterator[Example]]:
        """The shards in a random order, dealt in turn; a lane mixes its examples within a window of ``BUFFER``."""
        order = np.random.default_rng([seed, 4, epoch]).permutation(len(self.files))
        return [islice(self._lane([seed, 5, epoch, lane], order[lane::of].tolist()), skip, None) for lane in own]

    def examples(self) -> list[Example]:
        """All of them, shard by shard."""
        return [example for file in self.files for example in members(file, len(self.classes))]

    def _lane(self, key: list[int], order: Sequence[int]) -> Iterator[Example]:
        rng = np.random.default_rng(key)
        while True:  # a lane with few examples begins again before the epoch ends
            found = (example for shard in order for example in members(self.files[shard], len(self.classes)))
            yield from _mixed(found, rng)

    def __len__(self) -> int:
        return sum(self.sizes)


def members(file: str, classes: int) -> Iterator[Example]:
    """The examples of a shard, read header by header; ValueError in one line for a shard that is cut short or foreign.

    Only regular members count, names are never used as paths. Neighbours with one stem are one example: an image, whose
    suffix is one of ``SUFFIXES``, and ``.cls``, a number below ``classes``.
    """
    stem, image, label, whole = None, None, None, 0
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # or the headers of a whole shard would stay in memory
                if not member.isreg():
                    continue
                name = PurePosixPath(member.name)
                key, suffix = str(name.with_name(name.name.split(".")[0])), name.suffix.lower()
                if key != stem:
                    stem, image, label = key, None, None
                if suffix in SUFFIXES:
                    image = member
                elif suffix == ".cls":
                    label = _label(archive, member, file, classes)
                if image is not None and label is not None:
                    if image.size > LARGEST:
                        raise ValueError(f"{file}: {image.name} has {image.size} bytes; an image has at most {LARGEST}")
                    yield Example(file, label, image.offset_data, image.size, image.name)
                    whole, image, label = whole + 1, None, None
            _expect_end(archive, file)
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{file} is no whole tar file: {error}; make or copy the shard again") from None
    if not whole:
        raise ValueError(f"{file} holds no pairs of an image and its class (0001.jpg, 0001.cls)")


def read(example: Example) -> bytes:
    """The bytes of an image file or of a member of a shard; ValueError where they are not all there."""
    try:
        with Path(example.file).open("rb") as file:
            file.seek(example.offset)
            content = file.read(example.length)
    except OSError as error:
        raise ValueError(f"{example.name} cannot be read: {error.strerror or error}") from None
    if example.length >= 0 and len(content) != example.length:
        raise ValueError(f"{example.name} is cut short: {len(content)} of {example.length} bytes")
    return content


def folders(root: Path) -> tuple[Files, dict[str, Files]]:
    """The training files of a folder, and those of the splits that are held out.

    1. root/train/CLASS/... and root/val/CLASS/...: val is the test split; of train the files whose names have the
       lowest hashes are held out, at most as many as of an IDX set and at most the shares of case 2.
    2. root/CLASS/...: divided as ``hnas.data.images.load`` does, file by file the same.
    """
    tests = [root / name for name in _TESTS if (root / name).is_dir()]
    if not (root / "train").is_dir() or not tests:
        listing = _listing(root)
        place = [split_of(name.decode("utf-8", "surrogateescape")) for name in listing.names.tolist()]
        parts = {split: _part(listing, [p == split for p in place]) for split in ("train", *SHARES)}
    else:
        listing, test = _listing(root / "train"), _listing(tests[0])
        if test.classes != listing.classes:
            odd = sorted(set(test.classes) ^ set(listing.classes))
            raise ValueError(f"{root}: train and {tests[0].name} have other classes; {odd[0]} is in one of them alone")
        order = np.argsort([hashlib.sha256(name).digest() for name in listing.names.tolist()], kind="stable")
        parts, taken = {"test": test}, 0
        for split, most in HELD.items():
            size = min(most, int(len(listing) * SHARES[split]))
            parts[split] = _part(listing, np.isin(np.arange(len(listing)), order[taken : taken + size]))
            taken += size
        parts["train"] = _part(listing, np.isin(np.arange(len(listing)), order[taken:]))
    for split, found in parts.items():
        if not len(found):
            raise ValueError(f"{root}: none of its {len(listing)} images falls into the split {split!r}; add images")
    return parts.pop("train"), parts


def shards(root: Path) -> tuple[Shards, dict[str, Shards]]:
    """The training shards of a folder, and those of the splits that are held out.

    1. root/train/*.tar and root/val/*.tar: val is the test split; the last two of train are search and calibration.
    2. root/*.tar: the last is the test split, the two before it are search and calibration.

    root/classes.txt has the class names, one a line, in the order of the numbers in .cls. A sizes.json beside the
    shards ({"shard-000000.tar": 1000}) saves counting their headers.
    """
    classes = _classes(root / "classes.txt")
    tests = [root / name for name in _TESTS if (root / name).is_dir()]
    apart = (root / "train").is_dir() and bool(tests)
    files = sorted((root / "train" if apart else root).glob("*.tar"))
    if len(files) < (3 if apart else 4):
        where = root / "train" if apart else root
        raise ValueError(
            f"{where} holds {len(files)} tar shards; it takes {3 if apart else 4}: some are held out whole"
        )
    parts = {"test": sorted(tests[0].glob("*.tar")) if apart else [files.pop()]}
    if not parts["test"]:
        raise ValueError(f"{tests[0]} holds no tar shards")
    parts |= {"search": [files.pop()], "calibration": [files.pop()], "train": files}
    found = {split: _counted(part, classes) for split, part in parts.items()}
    return found.pop("train"), found


def _listing(root: Path) -> Files:
    classes = tuple(sorted(f.name for f in root.iterdir() if f.is_dir() and not f.name.startswith(".")))
    names, labels = [], []
    for label, name in enumerate(classes):
        inside = []
        for folder, _, files in os.walk(root / name):  # a million paths as objects would take minutes
            within = folder[len(str(root)) + 1 :]
            inside += [f"{within}/{file}" for file in files if f".{file.rpartition('.')[2].lower()}" in SUFFIXES]
        inside.sort(key=lambda inner: inner.split("/"))
        names += [inner.encode("utf-8", "surrogateescape") for inner in inside]
        labels += [label] * len(inside)
    if len(classes) < 2 or not names:
        found = f"{len(classes)} sub-folders with {len(names)} images"
        raise ValueError(f"{root} holds no two sub-folders of images; it has {found}")
    return Files(str(root), np.array(names), np.array(labels, np.int64), classes)


def _part(listing: Files, chosen: Sequence[bool] | NDArray[np.bool_]) -> Files:
    mask = np.asarray(chosen, bool)
    return Files(listing.root, listing.names[mask], listing.labels[mask], listing.classes)


def _counted(files: Sequence[Path], classes: tuple[str, ...]) -> Shards:
    known = files[0].parent / "sizes.json"
    record = read_json(known) if known.is_file() else {}
    sizes = [record.get(file.name) or sum(1 for _ in members(str(file), len(classes))) for file in files]
    for file, size in zip(files, sizes, strict=True):
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(
                f"{known} gives {json.dumps(size)} as the size of {file.name}; a number from 1 on is expected"
            )
    return Shards(tuple(map(str, files)), tuple(sizes), classes)


def _classes(file: Path) -> tuple[str, ...]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read ({error}); it names the classes, one a line") from None
    classes = tuple(line.strip() for line in lines if line.strip())
    if len(classes) < 2:
        raise ValueError(f"{file} names {len(classes)} classes; two or more are expected, one a line")
    return classes


def _label(archive: tarfile.TarFile, member: tarfile.TarInfo, file: str, classes: int) -> int:
    stream = archive.extractfile(member)
    text = stream.read(32).strip() if stream else b""
    if not text.isdigit() or int(text) >= classes:
        shown = text.decode("ascii", "backslashreplace")
        raise ValueError(f"{file}: {member.name} holds {shown!r}; a class number below {classes} is expected")
    return int(text)


def _expect_end(archive: tarfile.TarFile, file: str) -> None:
    """ValueError unless the empty block that ends a tar file is there: tarfile takes a spoilt header for the end."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise ValueError(f"{file} is no whole tar file: it ends at byte {archive.offset}; make or copy the shard again")


def _mixed(examples: Iterable[Example], rng: np.random.Generator) -> Iterator[Example]:
    held: list[Example] = []
    for example in examples:
        if len(held) < BUFFER:
            held.append(example)
        else:
            chosen = int(rng.integers(BUFFER))
            yield held[chosen]
            held[chosen] = example
    yield from (held[index] for index in rng.permutation(len(held)))
