"""Predicted multiply-accumulates of a member, fast enough for many predictions in every training step."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import torch

from hnas.cost.flops import macs
from hnas.space import Arch, Space

SAMPLES = 192  # members that are counted to fit the model; with 128 (256) of them the shipped space is within 12 (9) %
TRIES = 64  # members that are drawn to find one inside a range; if none is inside, the nearest is used


class _ComplexityModel:
    """A model that predicts multiply-accumulates: ridge regression of their logarithm on the options of a member.

    The model is fitted once for each space, to ``SAMPLES`` members from a fixed seed. torch counts these members on the
    meta device. A count takes tens of milliseconds, a prediction some microseconds.
    """

    def __init__(self, space: Space) -> None:
        rng = Random(0)
        ends = (space.smallest, space.largest)
        members = list(dict.fromkeys((*ends, *(space.sample(rng) for _ in range(SAMPLES)))))
        self._column: dict[tuple[str, Any], int] = {}
        for name, choice in space.choices.items():
            for option in choice.options:
                self._column[name, option] = len(self._column)
        counts = np.log([count_macs(space, arch) for arch in members])
        rows = np.array([self._row(arch) for arch in members])
        self._mean = float(counts.mean())
        square = rows.T @ rows + np.eye(rows.shape[1])
        self._weights = np.linalg.solve(square, rows.T @ (counts - self._mean))
        self._sorted = np.sort([self(arch) for arch in members])

    def __call__(self, arch: Arch) -> float:
        """Return the predicted multiply-accumulates of a member."""
        taken = [self._column[name, option] for name, option in arch.items()]
        return math.exp(float(self._weights[taken].sum()) + self._mean)

    def bank(self, arch: Arch, banks: int) -> int:
        """Return the number of the complexity range of ``arch``, from 0 (cheapest) to ``banks`` - 1.

        The ranges are quantiles: each holds the same number of random members.
        """
        below = float(np.searchsorted(self._sorted, self(arch), side="left")) / len(self._sorted)
        return min(int(below * banks), banks - 1)

    def draw(self, rng: Random, bank: int, banks: int, sample: Callable[[Random], Arch]) -> Arch:
        """Return a member of the range ``bank``, drawn by ``sample``; if no draw is inside, the nearest."""
        nearest, off = None, math.inf
        for _ in range(TRIES):
            arch = sample(rng)
            away = abs(self.bank(arch, banks) - bank)
            if away < off:
                nearest, off = arch, away
            if off == 0:
                break
        assert nearest is not None
        return nearest

    def _row(self, arch: Arch) -> np.ndarray[Any, np.dtype[np.float64]]:
        row = np.zeros(len(self._column))
        row[[self._column[name, option] for name, option in arch.items()]] = 1.0
        return row


def count_macs(space: Space, arch: Arch) -> int:
    """Return the multiply-accumulates of a member, counted by torch; at least 1."""
    with torch.device("meta"):
        net = space.build(arch)
    return max(1, macs(net, *space.example(arch)))


def fitted_model(space: Space) -> _ComplexityModel:
    """Return the prediction for ``space``, fitted at the first call and kept as long as the space lives."""
    kept: dict[str, Any] = vars(space)  # a frozen dataclass of dicts has no hash, so it cannot be the key of a table
    if "_complexity" not in kept:
        kept["_complexity"] = _ComplexityModel(space)
    model: _ComplexityModel = kept["_complexity"]
    return model
