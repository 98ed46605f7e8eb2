"""Readable images of one lane of a data set, in a fixed order."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hnas.data.images import open_image
from hnas.data.sources import Example, read_example

if TYPE_CHECKING:
    from PIL.Image import Image

_ROW = 100  # successive unreadable images that are skipped before reading fails


@dataclass
class Lane:
    """The images of ``stream``, each decoded when it is taken.

    channels: 1 (grey) or 3 (RGB).
    skip: replace an unreadable image by the next readable one; without ``skip`` such an image is an error.
    """

    stream: Iterator[Example]
    channels: int
    skip: bool
    _ahead: deque[Example] = field(default_factory=deque)

    def take(self) -> tuple[Image, int, bool]:
        """Return the next image, its label, and whether the image replaces an unreadable one.

        A replacement is also taken at its own place. A resumed run skips places without decoding, and therefore takes
        the same images.

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
