"""Tar shards of the WebDataset format as a source of examples.

``train, held = find_shards(Path("imagenet-shards"))``
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np

from hnas.data.layout import SUFFIXES
from hnas.data.sources import LARGEST_FILE, TEST_FOLDERS, Example
from hnas.files import check_plain, read_json, read_plain

BUFFER = 512  # examples of a lane that are shuffled together; positions in the shard, not pixels
LARGEST = 64 << 20  # bytes of one image in a shard; a larger size is a mistake or an attack
_LARGEST_CLASSES = 2**24  # bytes of classes.txt


@dataclass(frozen=True)
class Shards:
    """Tar files in which an image and its class number are neighbours, such as 0001.jpg and 0001.cls.

    The files are read from front to back. Nothing is unpacked.

    sizes: the number of examples in each file.
    """

    files: tuple[str, ...]
    sizes: tuple[int, ...]
    classes: tuple[str, ...]

    @property
    def units(self) -> int:
        """Return the number of shards. It limits the number of lanes, because a lane needs at least one shard."""
        return len(self.files)

    @cached_property
    def digest(self) -> str:
        """Return the sha256 of the names and sizes of the shards, and of the classes."""
        names = [Path(file).name for file in self.files]
        return hashlib.sha256(repr((names, self.sizes, self.classes)).encode()).hexdigest()

    def lanes(self, seed: int, epoch: int, of: int, own: Sequence[int], skip: int) -> list[Iterator[Example]]:
        """Return the lanes ``own`` of an epoch, each an endless stream. The arguments are those of ``Source.lanes``.

        The shards are permuted by seed and epoch. Lane i takes the i-th shard and then every ``of``-th shard, and
        shuffles its examples in a window of ``BUFFER``.
        """
        order = np.random.default_rng([seed, 4, epoch]).permutation(len(self.files))
        return [islice(self._lane([seed, 5, epoch, lane], order[lane::of].tolist()), skip, None) for lane in own]

    def examples(self) -> list[Example]:
        """Return all examples, shard by shard."""
        return [example for file in self.files for example in members(file, len(self.classes))]

    def _lane(self, key: list[int], order: Sequence[int]) -> Iterator[Example]:
        rng = np.random.default_rng(key)
        while True:  # a lane with few examples starts again before the epoch ends
            found = (example for shard in order for example in members(self.files[shard], len(self.classes)))
            yield from _shuffled(found, rng)

    def __len__(self) -> int:
        return sum(self.sizes)


def find_shards(root: Path) -> tuple[Shards, dict[str, Shards]]:
    """Return the training shards of a folder, and the shards of each held-out split.

    1. root/train/*.tar and root/val/*.tar: val is the test split; the last two of train are search and calibration.
    2. root/*.tar: the last is the test split, the two before it are search and calibration.

    root/classes.txt has the class names, one a line, in the order of the numbers in .cls. The optional file sizes.json
    beside the shards ({"shard-000000.tar": 1000}) gives the numbers of examples, so that no header has to be read.

    Raises:
        ValueError: there are too few shards, or a file cannot be read.
    """
    classes = _classes(root / "classes.txt")
    tests = [root / name for name in TEST_FOLDERS if (root / name).is_dir()]
    apart = (root / "train").is_dir() and bool(tests)
    where, fewest = (root / "train", 3) if apart else (root, 4)  # case 1, case 2
    files = sorted(where.glob("*.tar"))
    if len(files) < fewest:
        raise ValueError(
            f"{where} contains {len(files)} tar shards; {fewest} or more are needed, because some are held out"
        )
    parts = {"test": sorted(tests[0].glob("*.tar")) if apart else [files.pop()]}
    if not parts["test"]:
        raise ValueError(f"{tests[0]} contains no tar shards")
    parts |= {"search": [files.pop()], "calibration": [files.pop()], "train": files}
    found = {split: _counted(part, classes) for split, part in parts.items()}
    return found.pop("train"), found


def members(file: str, classes: int) -> Iterator[Example]:
    """Yield the examples of a shard, header by header.

    Neighbours with one stem are one example: an image, whose suffix is one of ``SUFFIXES``, and ``.cls``, a number
    below ``classes``. Only regular members count. Names of members are never used as paths.

    Raises:
        ValueError: the shard is cut short, is not a tar file, is no plain file, or contains no example.
    """
    stem, image, label, empty = None, None, None, True
    for member, text in _regular_members(file):
        name = PurePosixPath(member.name)
        key, suffix = str(name.with_name(name.name.split(".")[0])), name.suffix.lower()
        if key != stem:
            stem, image, label = key, None, None
        if suffix in SUFFIXES:
            image = member
        elif suffix == ".cls":
            label = _label(text, f"{file}: {member.name}", classes)
        if image is not None and label is not None:
            if image.size > LARGEST:
                raise ValueError(f"{file}: {image.name} has {image.size} bytes; an image has at most {LARGEST}")
            yield Example(file, label, image.offset_data, image.size, image.name)
            empty, image, label = False, None, None
    if empty:
        raise ValueError(f"{file} contains no pairs of an image and its class (0001.jpg, 0001.cls)")


def _regular_members(file: str) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Yield every regular member, and the text of a ``.cls`` member."""
    try:
        check_plain(Path(file), LARGEST_FILE)
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # keeps only one header of the shard in memory
                if member.isreg():
                    stream = archive.extractfile(member) if member.name.lower().endswith(".cls") else None
                    yield member, stream.read(32).strip() if stream else b""
            _expect_end(archive, file)
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{file} is not a complete tar file: {error}; make or copy the shard again") from None


def _counted(files: Sequence[Path], classes: tuple[str, ...]) -> Shards:
    """Return the shards with their sizes, from sizes.json or counted."""
    known = files[0].parent / "sizes.json"
    record = read_json(known) if known.is_file() else {}
    sizes = [record.get(file.name) or sum(1 for _ in members(str(file), len(classes))) for file in files]
    for file, size in zip(files, sizes, strict=True):
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(
                f"{known} gives {json.dumps(size)} as the size of {file.name}; expected a number from 1 on"
            )
    return Shards(tuple(map(str, files)), tuple(sizes), classes)


def _classes(file: Path) -> tuple[str, ...]:
    try:
        lines = read_plain(file, _LARGEST_CLASSES).decode().splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read ({error}); it names the classes, one a line") from None
    classes = tuple(line.strip() for line in lines if line.strip())
    if len(classes) < 2:
        raise ValueError(f"{file} names {len(classes)} classes; two or more are expected, one a line")
    return classes


def _label(text: bytes, name: str, classes: int) -> int:
    if not text.isdigit() or int(text) >= classes:
        shown = text.decode("ascii", "backslashreplace")
        raise ValueError(f"{name} contains {shown!r}, expected a class number below {classes}")
    return int(text)


def _expect_end(archive: tarfile.TarFile, file: str) -> None:
    """Raise ValueError unless an empty block ends the file. tarfile itself treats a damaged header as the end."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise ValueError(
            f"{file} is not a complete tar file: it ends at byte {archive.offset}; make or copy the shard again"
        )


def _shuffled(examples: Iterable[Example], rng: np.random.Generator) -> Iterator[Example]:
    held: list[Example] = []
    for example in examples:
        if len(held) < BUFFER:
            held.append(example)
        else:
            chosen = int(rng.integers(BUFFER))
            yield held[chosen]
            held[chosen] = example
    yield from (held[index] for index in rng.permutation(len(held)))
