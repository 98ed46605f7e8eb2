"""Measure a call from end to end on the device of ``--host``: ``measure_ends(worker, network)``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hnas.data.images import Preprocessing, triangle_filter
from hnas.export.device.ends import PARTS
from hnas.export.remote.worker import Worker

RUNS = 30


@dataclass(frozen=True)
class EndToEnd:
    """The parts of a call on a device, as medians in milliseconds.

    prepare: pixels to the input; 0 where the preprocessing is not known.
    run: the runtime from array to array, without ``copies``.
    answer: softmax and the best classes.
    n: number of calls.
    pixels: whether the preprocessing is known.
    copies: to the GPU and back; 0 where the runtime does not time them apart, so that they are part of ``run``.
    """

    prepare: float
    run: float
    answer: float
    n: int
    pixels: bool
    copies: float = 0.0

    def line(self) -> str:
        """Return one line for a person."""
        whole = self.prepare + self.copies + self.run + self.answer
        first = f"prepare {self.prepare:.3g}" if self.pixels else "prepare: not known for this network"
        run = f"copies {self.copies:.3g}, run {self.run:.3g}" if self.copies else f"run with copies {self.run:.3g}"
        parts = f"{first}, {run}, answer {self.answer:.3g}"
        return f"end to end on the device {whole:.3g} ms: {parts} (medians, n={self.n})"


def preprocessing_arrays(preprocessing: Preprocessing) -> tuple[NDArray[Any], ...]:
    """Return random pixels, and the arrays by which `hnas.export.device.ends.prepare` makes an input of them."""
    height, width = preprocessing.base
    image = np.random.default_rng(0).integers(0, 256, (1, height, width, preprocessing.channels), np.uint8)
    std = np.asarray(preprocessing.std, np.float32)
    scale, offset = np.float32(1 / 255) / std, np.asarray(preprocessing.mean, np.float32) / std
    same = preprocessing.base == preprocessing.size
    filters = [np.zeros((0, 0), np.float32) if same else triangle_filter(*pair) for pair in _pairs(preprocessing)]
    return (image, scale, offset, *filters)


def _pairs(preprocessing: Preprocessing) -> Sequence[tuple[int, int]]:
    return list(zip(preprocessing.base, preprocessing.size, strict=True))


def measure_ends(worker: Worker, arrays: Sequence[NDArray[Any]], *, pixels: bool) -> EndToEnd:
    """Return the parts of a call of the opened artifact."""
    times = worker.time_ends(arrays, RUNS, pixels=pixels)
    medians = dict(zip(PARTS, (float(value) * 1e3 for value in np.median(times, axis=0)), strict=True))
    return EndToEnd(**medians, n=len(times), pixels=pixels)
