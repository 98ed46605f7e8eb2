"""Decode image files with Pillow: ``open_image(Path("cat.png"), channels=3)``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hnas.files import check_plain

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = NDArray[np.uint8]
LARGEST = 2**34  # bytes of all decoded images of a split, at most
# Modes that Pillow converts to grey only by another one: mode -> the other one.
_BETWEEN = {"La": "LA", "RGBa": "RGBA", "LAB": "RGB"}
_UNREADABLE = " cannot be read as an image"  # between the name of a file and the reason
NAMED = 200  # files that a message names


def open_image(file: Path | IO[bytes], channels: int, name: str | None = None) -> Image:
    """Return an image in grey or RGB, rotated by its EXIF tag. Transparent pixels become white.

    Of 16-bit values, the upper 8 bits are used.

    file: a path or an open file.
    channels: 1 (grey) or 3 (RGB).
    name: the name of an open file in error messages.

    Raises:
        ValueError: the file cannot be read as an image.
    """
    from PIL import Image

    try:
        if isinstance(file, Path):
            check_plain(file, LARGEST)
        with Image.open(file) as image:
            return upright(image, channels, str(name or file))
    # Pillow raises any of these for a broken file; SyntaxError is for chunks of a PNG.
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name or file}{_UNREADABLE}: {error}") from None


def upright(image: Image, channels: int, name: str = "the image") -> Image:
    """Return an open image in grey or RGB, rotated by its EXIF tag. Transparent pixels become white.

    Its modes are all those of Pillow except I and F, whose scale is unknown. Of 16-bit values, the upper 8 bits are
    used.

    channels: 1 (grey) or 3 (RGB).
    name: the name of the image in error messages.

    Raises:
        ValueError: the image cannot be read.

    Example: ``upright(Image.new("CMYK", (4, 3)), channels=3)``
    """
    from PIL import Image, ImageOps

    try:
        turned = ImageOps.exif_transpose(image)
        colours = _on_white(_eight_bits(turned.convert(_BETWEEN.get(turned.mode, turned.mode))))
        return colours.convert("L" if channels == 1 else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name}{_UNREADABLE}: {error}") from None


def decode(file: Path | IO[bytes], size: tuple[int, int], channels: int, name: str | None = None) -> Pixels:
    """Return an image file as uint8 [H, W, C], resized."""
    return resized(open_image(file, channels, name), size)


def resized(image: Image, size: tuple[int, int]) -> Pixels:
    """Return an image in grey or RGB as uint8 [H, W, C] of this (H, W), with a bilinear filter."""
    from PIL.Image import Resampling

    ready = image.resize((size[1], size[0]), Resampling.BILINEAR)
    return np.asarray(ready, np.uint8).reshape(*size, len(image.getbands()))


def _on_white(image: Image) -> Image:
    """Return ``image`` on a white background. The colours of transparent pixels are arbitrary, so they are not used."""
    from PIL import Image

    if not image.has_transparency_data:
        return image
    colours = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")


def _eight_bits(image: Image) -> Image:
    """Return ``image``; of 16-bit grey values return the upper 8 bits, as Pillow does for 16-bit colours.

    Pillow would clip 16-bit grey values to white. 32-bit integers and floats are refused: their scale is unknown.
    """
    from PIL import Image

    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels have 32 bits (mode {image.mode}); save it with 8 or 16")
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))


def decode_files(files: Sequence[Path], size: tuple[int, int], channels: int) -> tuple[Pixels, Mapping[int, str]]:
    """Return the images in ``files``, and for each file that cannot be read its place and the reason.

    The images are uint8 [N, H, W, C]; an unreadable one is black.
    """
    images = np.zeros((len(files), *size, channels), np.uint8)
    broken: dict[int, str] = {}
    for i, file in enumerate(files):
        try:
            images[i] = decode(file, size, channels)
        except ValueError as error:
            broken[i] = str(error)
    return images, broken


def refuse_broken(reasons: Sequence[str]) -> None:
    """Raise ValueError if images cannot be read. The message counts and names them, as ``name_broken`` does."""
    if reasons:
        count = f"{len(reasons)} images cannot be read: " if len(reasons) > 1 else ""
        raise ValueError(f"{count}{name_broken(reasons)}; remove them, or train with --skip-broken")


def name_broken(reasons: Sequence[str]) -> str:
    """Return the reason of the first unreadable image, and the names of all, up to 200. Control characters are escaped.

    reasons: "FILE cannot be read as an image: REASON" for each.
    """
    others = [_escaped(reason.partition(_UNREADABLE)[0]) for reason in reasons[1:NAMED]]
    more = f", and {len(reasons) - NAMED} more" if len(reasons) > NAMED else ""
    return _escaped(reasons[0]) + (f"; also {', '.join(others)}{more}" if others else "")


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
