"""The images of the studies: Fashion-MNIST at 14 x 14 where its files are at hand, scikit-learn's digits otherwise.

The splits never overlap: training reads ``train``, norms are calibrated on ``calibration``, every choice is made on
``search``, and ``test`` is only reported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from hnas.data.images import ImageData, Preprocessing, load
from hnas.tasks.classification import Classification
from hnas.tasks.digits import open_task as digits

SIDE = 14
_TRAIN = 12_000  # images of Fashion-MNIST that are trained on
QUICK = {"train": 512, "calibration": 128, "search": 128, "test": 128}
OPTIONS: dict[str, dict[str, Any]] = {
    "fashion-14": {"flip": True, "shift": 1, "batch_size": 64},
    "digits": {"flip": False, "shift": 0, "batch_size": 64},
}


def task(images: Path | None, seed: int, quick: bool = False, **options: Any) -> Classification:
    """The task whose batches come in the order of ``seed``; images: the folder of the IDX files, None for digits."""
    name = "digits" if images is None else "fashion-14"
    splits, preprocessing = _splits(images, quick)
    return Classification(splits, preprocessing, **{**OPTIONS[name], **options}, seed=seed, name=name)


def named(of: Mapping[str, str], images: Path | None, seed: int, quick: bool = False) -> Classification:
    """The task that a setting was described by; ValueError for other images: a part must not be answered from them.

    Digits need no folder, so one that is given for other studies does no harm.
    """
    found = task(None if of["name"] == "digits" else images, seed, quick)
    if found.name != of["name"]:
        raise ValueError(f"this part is of {of['name']}, the images given are {found.name}; check --data")
    return found


def described(images: Path | None, quick: bool = False) -> dict[str, str]:
    """Name and digest of the data, which belong to the setting of a part."""
    name = "digits" if images is None else "fashion-14"
    splits, _ = _splits(images, quick)
    found = "".join(f"{split}{data.digest}" for split, data in sorted(splits.items()))
    return {"name": name, "digest": hashlib.sha256(found.encode()).hexdigest()[:16]}


def sentence(images: Path | None, quick: bool = False) -> str:
    """The data in words."""
    splits, _ = _splits(images, quick)
    name = "scikit-learn digits 8x8" if images is None else "Fashion-MNIST 14x14"
    counts = ", ".join(f"{len(data):,} {split}" for split, data in splits.items())
    return f"{name} ({counts})"


@lru_cache(4)
def _splits(images: Path | None, quick: bool) -> tuple[dict[str, ImageData], Preprocessing]:
    if images is None:
        whole = digits()
        return {split: _first(data, split, quick) for split, data in whole.splits.items()}, whole.preprocessing
    splits = {}
    for split in ("train", "calibration", "search", "test"):
        data = load(images, split)
        limit = _TRAIN if split == "train" else len(data)
        splits[split] = _first(ImageData(_halved(data.images[:limit]), data.labels[:limit], data.classes), split, quick)
    pixels = splits["train"].images / 255
    side = (SIDE, SIDE)
    mean, std = round(float(pixels.mean()), 4), round(float(pixels.std()), 4)
    return splits, Preprocessing(side, side, (mean,), (std,))


def _first(data: ImageData, split: str, quick: bool) -> ImageData:
    """All of a split, or as much as a quick run takes."""
    limit = QUICK[split] if quick else len(data)
    return ImageData(data.images[:limit], data.labels[:limit], data.classes)


def _halved(images: Any) -> Any:
    """uint8 [N, 28, 28, 1] averaged over 2 x 2 pixels."""
    n, height, width, channels = images.shape
    return np.round(images.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))).astype(np.uint8)
