"""Image classification in memory: augmented batches, label smoothing, in-place distillation, top-1 accuracy.

``open_task(Path("photos"), size=64, channels=3, batch_size=64)`` returns the task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hnas.data.decoding import Pixels
from hnas.data.images import SPLITS, ImageData, Preprocessing, divide, load_splits
from hnas.data.survey import read_splits
from hnas.distillation import DIVERGENCES, distil
from hnas.memory import channels_last
from hnas.ranges import Channels, Count, PositiveInt, Share
from hnas.space import Shape
from hnas.units import Score


class PackageMissing(RuntimeError):
    """A package that a task needs is not installed."""

    code = 3


@dataclass(frozen=True)
class Classification:
    """A task over the images of ``splits``: "train" and the held-out splits.

    batch_size: images in a batch, of all processes together.
    flip: mirror half of the training images.
    shift: translate training images by at most this number of pixels (edges repeat).
    smoothing: of the labels.
    distil: the weight of the divergence from a teacher in the loss; the cross-entropy has the rest.
    divergence: "kl" or "alpha" (``hnas.distillation``).
    seed: of the order of the images and of their augmentation.
    notes: what a person should know about the images; empty by default.
    left_out: the number of unreadable images that were left out (0).
    """

    splits: dict[str, ImageData]
    preprocessing: Preprocessing
    batch_size: int = 128
    flip: bool = True
    shift: int = 2
    zoom: float = 1.0
    smoothing: float = 0.1
    distil: float = 0.5
    divergence: str = "kl"
    seed: int = 0
    name: str = "images"
    notes: tuple[str, ...] = ()
    left_out: int = 0
    _orders: dict[int, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.divergence not in DIVERGENCES:
            raise ValueError(f"no divergence {self.divergence!r}; known: {', '.join(DIVERGENCES)}")

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the class names, in label order."""
        return next(iter(self.splits.values())).classes

    @property
    def space_arguments(self) -> Mapping[str, int]:
        """Return the number of classes and of channels."""
        return {"classes": len(self.classes), "channels": self.preprocessing.channels}

    @property
    def score(self) -> Score:
        """Return that the metric is the top-1 accuracy."""
        return Score("top-1", True, ".2%")

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of whole batches in one pass over the training images, at least 1."""
        return max(1, len(self.splits["train"]) // self.batch_size)

    def batch(self, step: int) -> tuple[Pixels, Tensor]:
        """Return augmented uint8 [B, H, W, C] and labels [B]; they depend on seed and step alone."""
        data = self.splits["train"]
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch not in self._orders:
            self._orders.clear()
            self._orders[epoch] = np.random.default_rng([self.seed, 1, epoch]).permutation(len(data))
        chosen = self._orders[epoch][position * self.batch_size : (position + 1) * self.batch_size]
        images = self._augment(data.images[chosen], np.random.default_rng([self.seed, 2, step]))
        return images, torch.from_numpy(data.labels[chosen])

    def inputs(self, raw: Any, shapes: Sequence[Shape]) -> tuple[Tensor, ...]:
        """Return uint8 images as the one float input [N, C, h, w] of an architecture, channels-last in memory."""
        ((_, height, width),) = shapes
        x = torch.from_numpy(self.preprocessing.at((height, width))(raw))
        return (channels_last(x),)

    def held(self, split: str) -> tuple[Pixels, Tensor]:
        """Return all images and labels of a held-out split."""
        return self.splits[split].images, torch.from_numpy(self.splits[split].labels)

    def loss(self, outputs: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Tensor:
        """Return the cross-entropy with smoothed labels, mixed with the divergence from a teacher if there is one."""
        return distil(outputs, labels, teacher, share=self.distil, smoothing=self.smoothing, divergence=self.divergence)

    def metric(self, outputs: Tensor, labels: Tensor) -> float:
        """Return the top-1 accuracy in [0, 1]. Outputs that are not finite count as wrong."""
        right = (outputs.argmax(1) == labels) & torch.isfinite(outputs).all(1)
        return float(right.double().mean())

    def to_json(self) -> dict[str, Any]:
        """Return name, classes, preprocessing and the digests of the splits."""
        return {
            "name": self.name,
            "classes": list(self.classes),
            "preprocessing": self.preprocessing.to_json(),
            "digests": {split: data.digest for split, data in self.splits.items()},
        }

    def _augment(self, images: Pixels, rng: np.random.Generator) -> Pixels:
        n, height, width, _ = images.shape
        if self.flip:
            images = np.where(rng.random((n, 1, 1, 1)) < 0.5, images[:, :, ::-1], images)
        if self.zoom < 1:
            images = _zoomed(images, rng.uniform(self.zoom, 1, (n, 2)), rng.random((n, 2)))
        if not self.shift:
            return images
        rows = _translated(height, rng.integers(-self.shift, self.shift + 1, n))
        columns = _translated(width, rng.integers(-self.shift, self.shift + 1, n))
        translated: Pixels = images[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
        return translated


def _translated(length: int, by: Any) -> Any:
    return np.clip(np.arange(length)[None] + by[:, None], 0, length - 1)


def _zoomed(images: Pixels, shares: Any, corners: Any) -> Pixels:
    """Return parts of images, resized (bilinear) to the size of the images.

    images: uint8 [N, H, W, C].
    shares: [N, 2], height and width of the parts as shares of those of the images.
    corners: [N, 2], where the parts are: 0 for the first rows or columns, 1 for the last ones.
    """
    n, height, width, _ = images.shape
    some = np.arange(n)[:, None]
    x = images.astype(np.float32)
    for axis, length in ((0, height), (1, width)):
        kept = shares[:, axis, None] * length
        at = (length - kept) * corners[:, axis, None] + (np.arange(length) + 0.5) * kept / length - 0.5
        at = at.clip(0, length - 1)
        low = np.minimum(at.astype(np.int64), length - 2)
        part = (at - low).astype(np.float32)
        if axis == 0:
            x = x[some, low] + (x[some, low + 1] - x[some, low]) * part[:, :, None, None]
        else:
            rows = np.arange(height)[None, :, None]
            a, b = x[some[:, :, None], rows, low[:, None]], x[some[:, :, None], rows, low[:, None] + 1]
            x = a + (b - a) * part[:, None, :, None]
    return np.rint(x).astype(np.uint8)


def _statistics(data: ImageData) -> tuple[tuple[float, ...], tuple[float, ...]]:
    # From the number of pixels of each value: floats of all pixels would take eight times the memory of the images.
    values = np.arange(256) / 255
    shares = [np.bincount(data.images[..., c].ravel(), minlength=256) for c in range(data.images.shape[3])]
    means = [float(np.average(values, weights=share)) for share in shares]
    stds = [float(np.average((values - m) ** 2, weights=own)) ** 0.5 for m, own in zip(means, shares, strict=True)]
    return tuple(round(m, 4) for m in means), tuple(round(max(s, 1e-3), 4) for s in stds)


def open_task(
    folder: Path | None,
    *,
    size: PositiveInt = 28,
    channels: Channels = 1,
    flip: bool = True,
    shift: Count = 2,
    zoom: Share = 1.0,
    alpha: Share = 0.0,
    skip: bool = False,
    **options: Any,
) -> Classification:
    """Return the task of a folder of images; mean and deviation of each channel are those of its training images.

    folder: as ``hnas.data.images.load_split`` reads it.
    size: height and width to which image files are resized, in pixels.
    channels: 1 (grey) or 3 (RGB).
    alpha: share of the training images that trains architecture parameters and no weights: the split "alpha" (0).
    skip: leave out image files that cannot be read (False); otherwise they are a ValueError.
    options: other fields of ``Classification``.

    Raises:
        FileNotFoundError: ``folder`` or a file in it is missing.
        ValueError: the files are not images, or a split would be empty.

    Example: ``open_task(Path("photos"), size=64, channels=3, batch_size=64)``
    """
    data, notes, skipped = read_splits(folder, (size, size), channels, skip=skip)
    mean, std = _statistics(data["train"])
    preprocessing = Preprocessing((size, size), (size, size), mean, std)
    given: dict[str, Any] = {
        "flip": flip,
        "shift": shift,
        "zoom": zoom,
        "name": folder.name if folder else "images",
        **options,
    }
    given |= {"notes": notes, "left_out": skipped}
    return Classification(keep_for_alpha(data, alpha), preprocessing, **given)


def keep_for_alpha(splits: dict[str, ImageData], share: float) -> dict[str, ImageData]:
    """Return the splits with a share of the training images as the split "alpha"; 0: unchanged."""
    if not share:
        return splits
    train, alpha = divide(splits["train"], share)
    return {**splits, "train": train, "alpha": alpha}


def open_held_out(
    folder: Path | None, preprocessing: Preprocessing, name: str, *, skip: bool = False
) -> Classification:
    """Return a task that scores and does not train: the held-out images of ``folder``, or of the shipped slice (None).

    preprocessing: the one that the supernet was trained with.
    skip: leave out image files that cannot be read (False).
    """
    held = [split for split in SPLITS if split != "train"]
    data = load_splits(folder, held, preprocessing.base, preprocessing.channels, skip=skip)
    return Classification(data, preprocessing, name=name)
