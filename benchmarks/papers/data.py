"""Open the images of the studies: Fashion-MNIST at 14 x 14 where its files are given, scikit-learn's digits otherwise.

Call ``describe_images(folder)`` for a setting, and ``StudyData.task`` in a run. The splits never overlap.
Training reads ``train``, batch-norm recalibration ``calibration``. Choices are made on ``search``, and ``test`` is only
reported.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from hnas.data.images import ImageData, Preprocessing, load_split
from hnas.tasks.classification import Classification
from hnas.tasks.digits import open_task as digits

_SIDE = 14
_TRAIN = 12_000  # training images of Fashion-MNIST
_QUICK = {"train": 512, "calibration": 128, "search": 128, "test": 128}
_FASHION, _DIGITS = "fashion-14", "digits"


@dataclass(frozen=True)
class StudyData:
    """The images of a part, as a part of its setting.

    name: "digits" or "fashion-14".
    digest: sixteen hex digits that identify all splits.
    quick: whether only the small splits of a quick run are used.
    """

    name: str
    digest: str
    quick: bool = False

    def task(self, images: Path | None, seed: int) -> Classification:
        """Return the task whose batches come in the order of ``seed``.

        images: the folder of the IDX files. Digits need none, so a folder that other studies read is ignored.

        Raises:
            ValueError: ``images`` holds other images than the part needs.
        """
        folder = None if self.name == _DIGITS else images
        name = _name(folder)
        if name != self.name:
            raise ValueError(f"this part needs the images {self.name}, but got {name}; check --data")
        splits, preprocessing = _splits(folder, self.quick)
        fashion = name == _FASHION
        return Classification(
            splits, preprocessing, flip=fashion, shift=1 if fashion else 0, batch_size=64, seed=seed, name=name
        )


def describe_images(images: Path | None, quick: bool = False) -> StudyData:
    """Return the description of the data for a setting; None takes digits."""
    splits, _ = _splits(images, quick)
    found = "".join(f"{split}{data.digest}" for split, data in sorted(splits.items()))
    return StudyData(_name(images), hashlib.sha256(found.encode()).hexdigest()[:16], quick)


def sentence(images: Path | None, quick: bool = False) -> str:
    """Return the name of the data and the sizes of its splits as text."""
    splits, _ = _splits(images, quick)
    name = "scikit-learn digits 8x8" if images is None else "Fashion-MNIST 14x14"
    counts = ", ".join(f"{len(data):,} {split}" for split, data in splits.items())
    return f"{name} ({counts})"


def _name(images: Path | None) -> str:
    return _DIGITS if images is None else _FASHION


@lru_cache(4)
def _splits(images: Path | None, quick: bool) -> tuple[dict[str, ImageData], Preprocessing]:
    if images is None:
        whole = digits()
        return {split: _first(data, split, quick) for split, data in whole.splits.items()}, whole.preprocessing
    splits = {}
    for split in ("train", "calibration", "search", "test"):
        data = load_split(images, split)
        limit = _TRAIN if split == "train" else len(data)
        splits[split] = _first(ImageData(_halved(data.images[:limit]), data.labels[:limit], data.classes), split, quick)
    pixels = splits["train"].images / 255
    side = (_SIDE, _SIDE)
    mean, std = round(float(pixels.mean()), 4), round(float(pixels.std()), 4)
    return splits, Preprocessing(side, side, (mean,), (std,))


def _first(data: ImageData, split: str, quick: bool) -> ImageData:
    """Return the whole split, or the images of a quick run."""
    limit = _QUICK[split] if quick else len(data)
    return ImageData(data.images[:limit], data.labels[:limit], data.classes)


def _halved(images: Any) -> Any:
    """Return uint8 [N, 28, 28, 1] averaged over 2 x 2 pixels."""
    n, height, width, channels = images.shape
    return np.round(images.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))).astype(np.uint8)
