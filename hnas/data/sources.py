"""Examples of a data set that is larger than memory: listed first, read one by one.

The order of an epoch is divided into *lanes*. A lane is a stream of examples that depends on seed and epoch alone, so
that a batch is the same with any number of processes and workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from hnas.files import check_plain

TEST_FOLDERS = ("val", "validation", "test")  # the possible names of the folder beside "train"
LARGEST_FILE = 2**39  # bytes of a tar shard; that of the whole of ImageNet is a quarter of it
_LARGEST_IMAGE = 2**30  # bytes of an image file


class Example(NamedTuple):
    """One image that has not been read.

    file: the image file, or the tar shard that contains the image.
    label: the index of the class.
    offset: where the image begins in ``file``, in bytes.
    length: the size of the image in bytes; -1 means the whole file.
    member: the name of the image within a shard.
    """

    file: str
    label: int
    offset: int = 0
    length: int = -1
    member: str = ""

    @property
    def name(self) -> str:
        """Return the name of the image for error messages."""
        return f"{self.file}: {self.member}" if self.member else self.file


class Source(Protocol):
    """The training examples of a data set."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the class names, in label order."""
        ...

    @property
    def units(self) -> int:
        """Return the largest possible number of lanes."""
        ...

    @property
    def digest(self) -> str:
        """Return the sha256 of the listing: names, sizes of shards and classes, not pixels."""
        ...

    def lanes(self, seed: int, epoch: int, of: int, own: Sequence[int], skip: int) -> list[Iterator[Example]]:
        """Return some lanes of an epoch, each an endless stream.

        of: number of all lanes.
        own: the numbers of the lanes to return.
        skip: number of examples that each lane leaves out at its start.
        """
        ...

    def __len__(self) -> int: ...


def read_example(example: Example) -> bytes:
    """Return the bytes of an image. Raise ValueError if the file is missing, not plain, too large or too short."""
    try:
        check_plain(Path(example.file), _LARGEST_IMAGE if example.length < 0 else LARGEST_FILE)
        with Path(example.file).open("rb") as file:
            file.seek(example.offset)
            content = file.read(example.length)
    except OSError as error:
        raise ValueError(f"{example.name} cannot be read: {error.strerror or error}") from None
    if example.length >= 0 and len(content) != example.length:
        raise ValueError(f"{example.name} is cut short: {len(content)} of {example.length} bytes")
    return content
