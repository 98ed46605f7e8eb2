"""Held-out splits of a data set that is larger than memory."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hnas.data.decoding import Pixels
from hnas.data.folders import Files
from hnas.data.images import Labels, Preprocessing
from hnas.data.shards import Shards
from hnas.data.sources import Example, read_example

_MEMORY = 1 << 30  # bytes of a split that are kept decoded; a larger split is decoded at each use


@dataclass(frozen=True)
class Unread:
    """Images that are decoded when ``pixels`` is called. Slicing decodes nothing.

    workers: the number of threads that decode.
    skip: true: an unreadable image becomes a black image; false: it is a ValueError.
    """

    examples: Sequence[Example]
    preprocessing: Preprocessing
    workers: int
    skip: bool

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, part: slice) -> Unread:
        return Unread(self.examples[part], self.preprocessing, self.workers, self.skip)

    def pixels(self) -> Pixels:
        """Return uint8 [N, H, W, C] at the ``base`` size of the preprocessing."""
        with ThreadPoolExecutor(max(1, self.workers)) as threads:  # Pillow releases the interpreter lock
            return np.stack(list(threads.map(self._decoded, self.examples)))

    def _decoded(self, example: Example) -> Pixels:
        try:
            return self.preprocessing.read(io.BytesIO(read_example(example)), example.name)
        except ValueError:
            if not self.skip:
                raise
            return np.zeros((*self.preprocessing.base, self.preprocessing.channels), np.uint8)


@dataclass(frozen=True)
class Held:
    """A held-out split with the attributes of ``ImageData``. The fields are those of ``Unread``."""

    source: Files | Shards
    preprocessing: Preprocessing
    workers: int
    skip: bool

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the class names, in label order."""
        return self.source.classes

    @property
    def digest(self) -> str:
        """Return the sha256 of the listing, not of pixels."""
        return self.source.digest

    @cached_property
    def labels(self) -> Labels:
        """Return int64 [N]."""
        return np.array([example.label for example in self._examples], np.int64)

    @cached_property
    def images(self) -> Pixels | Unread:
        """Return uint8 [N, H, W, C] if the split fits into 1 GiB; otherwise return undecoded images."""
        unread = Unread(self._examples, self.preprocessing, self.workers, self.skip)
        size = len(self) * math.prod(self.preprocessing.base) * self.preprocessing.channels
        return unread.pixels() if size <= _MEMORY else unread

    @cached_property
    def _examples(self) -> list[Example]:
        return self.source.examples()

    def __len__(self) -> int:
        return len(self.source)
