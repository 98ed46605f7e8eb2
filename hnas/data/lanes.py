"""Readable images of one lane of a data set, in a fixed order."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hnas.data.decoding import open_image
from hnas.data.sources import Example, read_example

if TYPE_CHECKING:
    from PIL.Image import Image

_ROW = 100  # successive unreadable images that are skipped before reading fails


@dataclass
class Lane:
    """The images of ``stream``, each decoded when it is taken.

    channels: 1 (grey) or 3 (RGB).
    skip: true: the next readable image replaces an unreadable image; false: an unreadable image is a ValueError.
    """

    stream: Iterator[Example]
    channels: int
    skip: bool
    _ahead: deque[Example] = field(default_factory=deque)

    def take(self) -> tuple[Image, int, bool]:
        """Return the next image, its label, and whether the image replaces an unreadable one.

        An image that replaces another one is also returned at its own position. The images of later positions are
        therefore the same whether or not an image is unreadable, and a resumed run can skip positions undecoded.

        Raises:
            ValueError: an image is unreadable and ``skip`` is false, or too many in a row are unreadable.
        """
        example = self._ahead.popleft() if self._ahead else next(self.stream)
        for tried in range(_ROW + 1):
            try:
                image = open_image(io.BytesIO(read_example(example)), self.channels, example.name)
                return image, example.label, tried > 0
            except ValueError as error:
                if not self.skip:
                    raise
                if tried == _ROW:
                    raise ValueError(f"{_ROW + 1} images in a row cannot be read; the last: {error}") from None
            while len(self._ahead) <= tried:
                self._ahead.append(next(self.stream))
            example = self._ahead[tried]
        raise AssertionError("unreachable")
