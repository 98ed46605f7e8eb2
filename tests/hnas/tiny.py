"""Spaces, images and tasks that are small enough to train within a test."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from hnas import spaces
from hnas.data.images import ImageData, Preprocessing
from hnas.space import Arch, Choice, Space
from hnas.tasks.classification import Classification

ARGUMENTS: dict[str, Any] = {
    "classes": 4,
    "resolutions": (8, 12),
    "stem": 8,
    "widths": ((8, 16), (16, 24)),
    "depths": ((1, 2), (2, 3)),
    "strides": (2, 1),
    "head": 16,
    "kernels": (3, 5),
    "expansions": (1, 2),
    "heads": (1, 2),
    "attention_tokens": 36,
}
# What the defaults leave out: layer norm, squeeze-excite, a choice of activation, attention wherever it may stand.
OPTIONS: dict[str, Any] = {
    **ARGUMENTS,
    "types": ("attention", "convnext", "mbconv"),
    "norm": "layer",
    "squeeze": True,
    "activations": ("relu", "hardswish", "gelu"),
}


def space(**changes: Any) -> Space:
    """A hybrid space of two stages for 12 x 12 images of four classes."""
    return spaces.load("hybrid_vision")(**{**ARGUMENTS, **changes})


def data(n: int = 64, seed: int = 0, size: int = 12) -> ImageData:
    """Images whose class is the bright quadrant, in noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 4
    images = rng.integers(0, 96, (n, size, size, 1))
    half = size // 2
    for image, label in zip(images, labels, strict=True):
        top, left = half * (label // 2), half * (label % 2)
        image[top : top + half, left : left + half] += 128
    return ImageData(images.astype(np.uint8), labels.astype(np.int64), ("a", "b", "c", "d"))


def task(**changes: Any) -> Classification:
    """Classification of ``data`` with disjoint splits."""
    splits = {split: data(64, seed) for seed, split in enumerate(("train", "calibration", "search", "test"))}
    options = {"batch_size": 16, "flip": False, "shift": 1, **changes}
    return Classification(splits, Preprocessing((12, 12), (12, 12), (0.3,), (0.2,)), **options)


def pair(union: nn.Module, member: nn.Module) -> tuple[Space, Arch]:
    """A space whose union and one member are given: what a view makes of the two."""
    lone = Space("pair", {}, {"c": Choice((0,))}, lambda _: member, lambda: union, lambda _: ((1,),), lambda _: None)
    return lone, lone.smallest
