"""Labelled images as arrays, and their preprocessing, which is stored in a bundle.

``load_split(Path("photos"), "test", (64, 64), channels=3)`` returns the images of a split.

Numpy and Pillow only: a device or a CI job reads images with the code that training used.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from hnas.data.decoding import LARGEST, Pixels, decode, decode_files, refuse_broken
from hnas.data.layout import HELD, Layout
from hnas.files import check_plain

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

SPLITS = ("train", "calibration", "search", "test")
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_LONGEST = 4096  # pixels of a side; a larger value in a record is a mistake or an attack
_LARGEST_IDX = 2**31  # bytes of an IDX file, unpacked


@dataclass(frozen=True)
class ImageData:
    """Images of a split.

    images: uint8 [N, H, W, C].
    labels: int64 [N], indices into ``classes``.
    """

    images: Pixels
    labels: Labels
    classes: tuple[str, ...]

    @cached_property
    def digest(self) -> str:
        """Return the sha256 of pixels, labels and class names."""
        found = hashlib.sha256(repr((self.images.shape, self.classes)).encode())
        found.update(np.ascontiguousarray(self.images).tobytes())
        found.update(np.ascontiguousarray(self.labels, np.int64).tobytes())
        return found.hexdigest()

    def __len__(self) -> int:
        return len(self.labels)


def divide(data: ImageData, share: float) -> tuple[ImageData, ImageData]:
    """Return two parts of ``data``; the second has this share of the images of every class, spread over the data.

    share: from 0 to below 1.

    Raises:
        ValueError: a part would be empty.
    """
    taken = np.zeros(len(data), bool)
    for label in range(len(data.classes)):
        own = np.flatnonzero(data.labels == label)
        count = round(share * len(own))
        taken[own[np.linspace(0, len(own), count, endpoint=False).astype(int)]] = True
    if taken.all() or not taken.any():
        raise ValueError(f"a share of {share} of {len(data)} training images leaves a part empty; give another alpha")
    parts = (ImageData(data.images[rows], data.labels[rows], data.classes) for rows in (~taken, taken))
    return next(parts), next(parts)


@dataclass(frozen=True)
class Preprocessing:
    """The conversion of pixels to the input of a network: scale to [0, 1], resize, normalise by channel.

    base: (H, W) to which Pillow resizes an image file (bilinear).
    size: (h, w) of the input of the network, reached from ``base`` by a triangle filter.
    mean: one value for each channel, in units of [0, 1].
    std: one value for each channel, in units of [0, 1].

    Example: ``x = preprocessing(preprocessing.read(Path("cat.png"))[None])``
    """

    base: tuple[int, int]
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Pixels) -> Floats:
        """Return uint8 [N, H, W, C] as contiguous float32 [N, C, h, w]. Raise ValueError for other arrays."""
        if images.ndim != 4 or images.shape[3] != len(self.mean) or images.dtype != np.uint8:
            raise ValueError(f"images are uint8 [N, H, W, {len(self.mean)}]; got {images.dtype} {list(images.shape)}")
        scale = np.float32(1 / 255) / np.asarray(self.std, np.float32)
        offset = np.asarray(self.mean, np.float32) / np.asarray(self.std, np.float32)
        x = (images * scale - offset).transpose(0, 3, 1, 2)
        if images.shape[1:3] != self.size:
            x = triangle_filter(images.shape[1], self.size[0]) @ x @ triangle_filter(images.shape[2], self.size[1]).T
        return np.ascontiguousarray(x, np.float32)

    @property
    def channels(self) -> int:
        """Return 1 for grey or 3 for RGB."""
        return len(self.mean)

    def at(self, size: tuple[int, int]) -> Preprocessing:
        """Return the same preprocessing for another input size."""
        return Preprocessing(self.base, size, self.mean, self.std)

    def read(self, file: Path | IO[bytes], name: str | None = None) -> Pixels:
        """Return an image file as uint8 [H, W, C], resized to ``base``.

        file: a path or an open file.
        name: the name of an open file in error messages.

        Raises:
            ValueError: the file cannot be read as an image.
        """
        return decode(file, self.base, len(self.mean), name)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object that ``from_json`` reads."""
        return {"base": list(self.base), "size": list(self.size), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Preprocessing:
        """Return the preprocessing that ``to_json`` wrote. Raise ValueError for a malformed record."""
        try:
            base, size = (tuple(int(v) for v in record[key]) for key in ("base", "size"))
            mean, std = (tuple(float(v) for v in record[key]) for key in ("mean", "std"))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise ValueError("preprocessing is recorded as base, size, mean and std; this record is not") from None
        sizes = len(base) == 2 and len(size) == 2 and 1 <= min(base + size) <= max(base + size) <= _LONGEST
        scales = len(mean) == len(std) in (1, 3) and min(std) > 0 and all(map(math.isfinite, mean + std))
        if not sizes or not scales:
            found = str(dict(record))[:200]
            raise ValueError(f"preprocessing has impossible values (sides are 1 to {_LONGEST}): {found}")
        return cls((base[0], base[1]), (size[0], size[1]), mean, std)


@lru_cache(64)
def triangle_filter(old: int, new: int) -> Floats:
    """Return the [new, old] matrix that resizes one axis with a triangle filter.

    For a smaller size the filter is wider, which is anti-aliased bilinear resizing.
    """
    step = old / new
    reach = max(step, 1.0)
    centres = (np.arange(new) + 0.5) * step - 0.5
    weights = np.maximum(0.0, 1 - np.abs(np.arange(old)[None] - centres[:, None]) / reach)
    return np.asarray(weights / weights.sum(1, keepdims=True), np.float32)


def load_split(
    folder: Path | None, split: str, size: tuple[int, int] = (28, 28), channels: int = 1, *, skip: bool = False
) -> ImageData:
    """Return the images of a split.

    folder: the data set; its form decides between the cases.
    split: one of ``SPLITS``.
    size: (H, W) to which image files are resized (cases 3 to 5).
    channels: 1 (grey) or 3 (RGB) of image files (cases 3 to 5).
    skip: leave out image files that cannot be read (False). ``hnas.data.survey`` counts them.

    1. ``folder`` is None: the shipped slice of Fashion-MNIST, which has no "train".
    2. Four IDX files (plain or .gz): a fixed permutation divides the train file; the test file is the test split.
    3. One sub-folder for each class: a hash of each relative file name chooses the split, the same on every run.
    4. Sub-folders train and val (or validation, or test), each with one sub-folder for each class: val is the test
       split. If there are both test and val, val is the search split. The other splits come from train, as in case 3.
    5. A CSV file with the columns path (relative to the file) and label, and optionally split, with the names of case 4
       or of ``SPLITS``. Images without a split are divided as in case 3 over the splits that no image names. Images of
       train stay there, except for splits that would be empty.

    Raises:
        FileNotFoundError: the folder or a file is missing.
        ValueError: a file is malformed, or the split is empty, unknown or too large.
    """
    return load_splits(folder, (split,), size, channels, skip=skip)[split]


def load_splits(
    folder: Path | None, splits: Sequence[str], size: tuple[int, int], channels: int, *, skip: bool = False
) -> dict[str, ImageData]:
    """Return the images of several splits, which are listed and divided once.

    folder, size, channels, skip and the errors: as for ``load_split``.

    Example: ``load_splits(Path("photos"), ("search", "test"), (64, 64), 3)``
    """
    if unknown := [split for split in splits if split not in SPLITS]:
        raise ValueError(f"no split {unknown[0]!r}; known: {', '.join(SPLITS)}")
    if folder is not None and is_image_files(folder):  # cases 3 to 5
        return decode_splits(folder, Layout.read(folder), splits, size, channels, skip=skip).data
    return {split: _shipped(split) if folder is None else _from_idx(folder, split) for split in splits}


@dataclass(frozen=True)
class _Decoded:
    """The image files of some splits that can be read.

    data: split -> its images.
    files: split -> the files of these images, in the same order.
    broken: for each file that was left out, why it cannot be read.
    """

    data: dict[str, ImageData]
    files: dict[str, list[Path]]
    broken: list[str]


def decode_splits(
    folder: Path, layout: Layout, splits: Sequence[str], size: tuple[int, int], channels: int, *, skip: bool
) -> _Decoded:
    """Return the decoded images of ``splits``.

    folder: the name of the data set in error messages.
    layout: the files of the data set.
    size, channels, skip: as for ``load_split``.

    Raises:
        ValueError: a split has no images, the images need too much memory, or images cannot be read and ``skip`` is not
            set.
    """
    listed = {split: layout.files(split) for split in splits}
    _check_memory(folder, sum(map(len, listed.values())), (*size, channels))
    found = _Decoded({}, {}, [])
    for split, pairs in listed.items():
        files, labels = [file for file, _ in pairs], np.array([label for _, label in pairs], np.int64)
        pixels, broken = decode_files(files, size, channels)
        kept = [i for i in range(len(files)) if i not in broken]
        found.data[split] = ImageData(pixels[kept] if broken else pixels, labels[kept], layout.classes)
        found.files[split] = [files[i] for i in kept]
        found.broken.extend(broken.values())
    if not skip:
        refuse_broken(found.broken)
    return found


def _shipped(split: str) -> ImageData:
    """Return a split of the shipped images (case 1 of ``load_split``)."""
    if split == "train":
        raise ValueError("the shipped images have no training split; give the whole data set with --data DIR")
    with resources.as_file(resources.files("hnas") / "assets" / "fashion") as shipped:
        images = read_idx(shipped / f"{split}-images-idx3-ubyte.gz")[..., None]
        return ImageData(images, _labels(shipped, split), FASHION)


def is_image_files(folder: Path) -> bool:
    """Return whether a data set is a folder or CSV file of image files, not of IDX files.

    Raises:
        FileNotFoundError: there is no such folder or file.
    """
    if folder.suffix.lower() == ".csv" and folder.is_file():
        return True
    if not folder.is_dir():
        wanted = "--data takes a folder of IDX files or of one sub-folder a class, or a CSV file with path,label"
        raise FileNotFoundError(f"no folder {folder}; {wanted}")
    return _idx_file(folder, "t10k-images-idx3-ubyte") is None


def read_idx(file: Path) -> Pixels:
    """Return the array in an IDX file of unsigned bytes (plain or gzip). Raise ValueError for another file."""
    try:
        check_plain(file, _LARGEST_IDX)
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            magic, kind, dims = struct.unpack(">HBB", stream.read(4))
            shape = struct.unpack(f">{dims}I", stream.read(4 * dims))
            if magic != 0 or kind != 8 or math.prod(shape) > _LARGEST_IDX:
                raise ValueError(f"{file} is not a complete IDX file of at most {_LARGEST_IDX} unsigned bytes")
            data = np.frombuffer(stream.read(math.prod(shape) + 1), np.uint8)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise ValueError(f"{file} is not a complete IDX file: {error}") from None
    if data.size != math.prod(shape):
        raise ValueError(f"{file} is not a complete IDX file: {data.size} values for shape {list(shape)}")
    return data.reshape(shape)


def write_idx(file: Path, array: Pixels) -> None:
    """Write unsigned bytes as a gzipped IDX file. Equal arrays give equal files."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    file.write_bytes(gzip.compress(header + np.ascontiguousarray(array).tobytes(), 9, mtime=0))


def _idx_file(folder: Path, stem: str) -> Path | None:
    return next((f for f in (folder / stem, folder / f"{stem}.gz") if f.is_file()), None)


def _labels(folder: Path, stem: str) -> Labels:
    return read_idx(folder / f"{stem}-labels-idx1-ubyte.gz").astype(np.int64)


def _from_idx(folder: Path, split: str) -> ImageData:
    prefix = "t10k" if split == "test" else "train"
    files = [_idx_file(folder, f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")]
    if files[0] is None or files[1] is None:
        wanted = f"{prefix}-images-idx3-ubyte or {prefix}-labels-idx1-ubyte"
        raise FileNotFoundError(f"{folder} lacks {wanted} (plain or .gz)")
    images, labels = read_idx(files[0]), read_idx(files[1]).astype(np.int64)
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(f"{folder}: {prefix} has images {list(images.shape)} and labels {list(labels.shape)}")
    if not len(labels):
        raise ValueError(f"{folder}: the {prefix} files contain no images")
    count = int(labels.max()) + 1  # of the whole file, because a split may lack a class
    if prefix == "train":
        if len(images) < 2 * sum(HELD.values()):
            raise ValueError(f"{folder}: {len(images)} training images are too few; {sum(HELD.values())} are held out")
        order = np.random.default_rng(0).permutation(len(images))
        bounds = np.cumsum([0, *HELD.values()])
        parts = dict(zip(HELD, (order[a:b] for a, b in pairwise(bounds)), strict=True))
        chosen = np.sort(parts.get(split, order[bounds[-1] :]))
        images, labels = images[chosen], labels[chosen]
    classes = FASHION if count == len(FASHION) else tuple(str(c) for c in range(count))
    return ImageData(images[..., None], labels, classes)


def _check_memory(folder: Path, images: int, shape: tuple[int, int, int]) -> None:
    """Raise ValueError if so many decoded images need more than 16 GiB."""
    if (needed := images * math.prod(shape)) > LARGEST:
        what = f"{images} images of {' x '.join(map(str, shape))}"
        raise ValueError(f"{folder}: {what} need {needed / 1e9:.0f} GB; choose a smaller size or fewer images")
