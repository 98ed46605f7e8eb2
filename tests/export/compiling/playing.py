"""A small network, its images, and faults of a runtime: ``play(noisy_outputs, "int8", calibration=images())``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hnas.export.device.artifact import Artifact
from hnas.export.graph.samples import Samples

Outputs = list[tuple[NDArray[Any], ...]]
Fault = Callable[[Artifact, Samples, Outputs], Outputs]
FITTED = "graded on the calibration samples, to which int8 was fitted; other samples may fare worse"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Conv2d(4, 4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def images(count: int = 16, factor: float = 1.0) -> list[tuple[NDArray[np.float32]]]:
    rng = np.random.default_rng(0)
    return [((rng.standard_normal((1, 2, 8, 8)) * factor).astype(np.float32),) for _ in range(count)]


def noisy(outputs: Sequence[tuple[NDArray[Any], ...]], level: float) -> Outputs:
    """Return the outputs with noise of ``level`` dB below each of them."""
    rng = np.random.default_rng(1)
    scale = 10 ** (-level / 20)

    def add(value: NDArray[Any]) -> NDArray[Any]:
        return value + (scale * np.sqrt(np.square(value).mean()) * rng.standard_normal(value.shape)).astype(value.dtype)

    return [tuple(map(add, each)) for each in outputs]


def exact(_: Artifact, __: Samples, outputs: Outputs) -> Outputs:
    return outputs


def graded(levels: Sequence[float]) -> Fault:
    """Return a fault with a level for each artifact, in the order in which they are made."""
    seen: list[Path] = []

    def fault(artifact: Artifact, _: Samples, outputs: Outputs) -> Outputs:
        if artifact.path not in seen:
            seen.append(artifact.path)
        return noisy(outputs, levels[seen.index(artifact.path)])

    return fault
