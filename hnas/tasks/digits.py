"""Classification of the handwritten digits in scikit-learn: 1,797 images of 8 x 8 pixels, without a download.

``open_task(batch_size=32)`` returns the task.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from hnas.data.images import ImageData, Preprocessing
from hnas.ranges import Count, Share
from hnas.tasks.classification import Classification, PackageMissing, keep_for_alpha

SIDE = 8
# The number of images of each split, in the order in which they are taken from a fixed permutation.
SIZES = {"test": 500, "search": 300, "calibration": 200, "train": 797}
_SEED = 0  # of the permutation; another seed would be another task


def open_task(
    folder: Path | None = None, *, flip: bool = False, shift: Count = 0, alpha: Share = 0.0, **options: Any
) -> Classification:
    """Return the task of classifying ten digits; its splits are the same on every machine.

    folder: not read, because scikit-learn has the images.
    alpha: share of the training images that trains architecture parameters and no weights: the split "alpha" (0).
    options: other fields of ``Classification``.

    Raises:
        PackageMissing: scikit-learn is not installed.
    """
    del folder
    images, labels = _load()
    bounds = np.cumsum([0, *SIZES.values()])
    order = np.random.default_rng(_SEED).permutation(len(labels))
    parts = {split: np.sort(order[a:b]) for split, (a, b) in zip(SIZES, pairwise(bounds), strict=True)}
    classes = tuple(str(digit) for digit in range(10))
    splits = {split: ImageData(images[parts[split]], labels[parts[split]], classes) for split in reversed(SIZES)}
    pixels = splits["train"].images / 255
    side = (SIDE, SIDE)
    preprocessing = Preprocessing(side, side, (round(float(pixels.mean()), 4),), (round(float(pixels.std()), 4),))
    kept = keep_for_alpha(splits, alpha)
    return Classification(kept, preprocessing, **{"flip": flip, "shift": shift, "name": "digits", **options})


def _load() -> tuple[Any, Any]:
    """Return uint8 [1797, 8, 8, 1] and int64 [1797]; the pixels of scikit-learn are from 0 to 16."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        if error.name != "sklearn":
            raise
        raise PackageMissing("scikit-learn is not installed; pip install 'hnas[papers]'") from None
    data = load_digits()
    ink = np.asarray(data.images, np.float64)
    return np.round(ink * (255 / 16)).astype(np.uint8)[..., None], np.asarray(data.target, np.int64)
