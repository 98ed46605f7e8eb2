"""Classify images with a bundle, without torch. Call `load("runs/openvino-cpu/bundle").predict("cat.png")`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from hnas.export.bundle.bundle import Bundle, read_bundle
from hnas.units import path_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from hnas.data.images import Preprocessing

    Picture: TypeAlias = str | os.PathLike[str] | Image | NDArray[np.uint8]

_Ranking: TypeAlias = "list[tuple[str, float]]"
"""Classes with their probabilities, the likeliest first."""
_Run: TypeAlias = "Callable[..., tuple[NDArray[Any], ...]]"


class Classifier:
    """A bundle that is open and classifies images. Make one with `hnas.load`.

    bundle: the bundle, whose ``manifest`` has every measured figure.
    """

    def __init__(self, bundle: Bundle, run: _Run) -> None:
        from hnas.data.images import Preprocessing

        taken = bundle.manifest.input
        if taken is None or taken.preprocessing is None:
            raise ValueError(f"{bundle.path} does not say how an image becomes its input; use export.load in Python")
        self.bundle = bundle
        self._run = run
        self._batch = next(iter(taken.shape), 1)
        self._preprocessing = Preprocessing.from_json(taken.preprocessing)

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the names of the classes, in the order of the network's outputs."""
        return self.bundle.labels

    @overload
    def predict(self, images: Picture, *, top: int | None = None) -> _Ranking: ...

    @overload
    def predict(self, images: list[Picture] | tuple[Picture, ...], *, top: int | None = None) -> list[_Ranking]: ...

    def predict(self, images: Any, *, top: int | None = None) -> _Ranking | list[_Ranking]:
        """Return the classes of an image with their probabilities, the likeliest first.

        Args:
            images: one image, or a list of them. An image is the path of a file, a PIL image in any mode but I and F,
                or an array uint8 [H, W], [H, W, 1] or [H, W, 3] of any size. An array [N, H, W, C] is a list of N
                images.
            top: the number of classes to return; None: all.

        Return one ranking for an image, and a list of rankings for a list of images.

        Example:
            label, probability = hnas.load("runs/photos/bundle").predict("cat.png")[0]

        Raises:
            ValueError: it is no image, or the network's output does not fit its labels.
            FileNotFoundError: there is no such file.
        """
        if top is not None and top < 1:
            raise ValueError(f"top is {top}; it is 1 or more, or None")
        several = isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4
        rankings = [self._rank(image)[:top] for image in (images if several else [images])]
        return rankings if several else rankings[0]

    def _rank(self, image: Any) -> _Ranking:
        import numpy as np

        batch, count = self._batch, len(self.labels)
        pixels = np.repeat(self._preprocessing(_read_pixels(image, self._preprocessing)[None]), batch, axis=0)
        scores, *_ = self._run(pixels)
        if scores.shape != (batch, count):
            raise ValueError(f"{self.bundle.path} names {count} classes, its output is {list(scores.shape)}")
        odds = np.exp(scores[0].astype(np.float64) - float(scores[0].max()))
        odds /= odds.sum()
        return [(self.labels[i], float(odds[i])) for i in np.argsort(-odds, kind="stable")]


def load(bundle: str | os.PathLike[str]) -> Classifier:
    """Check every byte of a bundle and open it in this process.

    Args:
        bundle: the folder that `hnas.deploy` wrote, such as runs/openvino-cpu/bundle

    Example:
        hnas.load("runs/photos/bundle").predict("cat.png")    # [("cat", 0.93), ("dog", 0.07)]

    Raises:
        ValueError: a file was changed, or the bundle does not classify images.
        FileNotFoundError: there is no bundle.
        Unavailable: the runtime is not installed.
    """
    from hnas.export import backends
    from hnas.export.device.errors import Unavailable
    from hnas.export.device.opening import open_runner
    from hnas.export.remote.worker import open_first

    found = read_bundle(path_text(bundle, "bundle"))
    artifact = found.artifact()
    runtime = backends.load(artifact.backend)
    if (missing := runtime.missing()) is not None:
        raise Unavailable(missing)
    open_first(artifact)  # in a process of its own: a broken file can end a process
    return Classifier(found, open_runner(runtime, artifact))


def _read_pixels(image: Any, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return an image as uint8 [H, W, C] in the size of ``preprocessing``.

    1. A path: the file.
    2. A PIL image, with any orientation and any mode but I and F.
    3. An array uint8 [H, W], [H, W, 1] or [H, W, 3].

    Raises:
        ValueError: it is anything else.
    """
    import numpy as np

    from hnas.data.decoding import resized, upright

    if isinstance(image, str | os.PathLike):  # case 1
        file = Path(image)
        if not file.is_file():
            raise FileNotFoundError(f"no image file {file}")
        return preprocessing.read(file)
    if isinstance(image, np.ndarray):  # case 3
        return resized(upright(_from_array(image), preprocessing.channels, "the array"), preprocessing.base)
    if hasattr(image, "getexif") and hasattr(image, "mode"):  # case 2
        return resized(upright(image, preprocessing.channels), preprocessing.base)
    raise ValueError(f"an image is a path, a PIL image or an array uint8 [H, W, 3]; got {type(image).__name__}")


def _from_array(array: NDArray[Any]) -> Image:
    """Return an array as a PIL image. Raise ValueError for an array of another type or shape."""
    from PIL import Image

    plain = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if str(array.dtype) != "uint8" or not (plain.ndim == 2 or (plain.ndim == 3 and plain.shape[2] == 3)):
        raise ValueError(f"an array is uint8 [H, W], [H, W, 1] or [H, W, 3]; got {array.dtype} {list(array.shape)}")
    if 0 in plain.shape:
        raise ValueError(f"the array {list(array.shape)} has no pixels")
    return Image.fromarray(plain)
