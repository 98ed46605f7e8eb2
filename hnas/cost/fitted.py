"""Predict a latency from few measured ones: the time of each class of kernel, and a Gaussian process for the rest.

``FittedLatency(space, skeleton).fit(archs, logs).predict(others)`` returns means and standard deviations of logarithms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import nn

from hnas.cost.work import Work
from hnas.predictor import Predictor
from hnas.space import Arch, Space

_Floats = NDArray[np.float64]
_PULL = 0.01  # towards equal times of all work; it decides only classes of kernel that nothing measured contains


class FittedLatency:
    """A model of a latency, or of another positive cost that adds up over kernels.

    1. The latency is the sum over classes of kernel of work times the time of a unit of it. These times are not
       negative, and fitted to relative errors (Lawson & Hanson 1974). So a runtime that is slow in one class, such as
       depthwise convolutions of 7 x 7, is known from a dozen networks.
    2. A Gaussian process predicts the logarithm of what is left.

    Example:
        model = FittedLatency(space, supernet.skeleton).fit(archs, numpy.log(milliseconds))
        means, deviations = model.predict([space.largest])

    Raises:
        AttributeError: a slot of the space is not a module of the network.
        ValueError: no operation of the largest network is known, or as in ``Work``.
    """

    def __init__(self, space: Space, skeleton: Callable[[Arch], nn.Module]) -> None:
        self._work, self._rest = Work(space, skeleton), Predictor(space)
        if not any(self._work(space.largest).values()):
            raise ValueError(f"no kernel is known of the networks of {space.name}")
        self._classes: list[str] = []

    def fit(self, archs: Sequence[Arch], logs: Sequence[float], *, variance: float = 0.0, tune: bool = True) -> Self:
        """Learn from the logarithms of the latencies of ``archs``, and return this model.

        variance, tune: as in ``Predictor.fit``.
        """
        found = [self._work(arch) for arch in archs]
        self._classes = sorted({name for each in found for name in each})
        y, work = np.exp(logs), self._matrix(found)
        equal, count = float(y.sum() / work.sum()), len(self._classes)
        left = np.concatenate([work / y[:, None], _PULL / equal * np.eye(count)])
        self._times: _Floats = nnls(left, np.concatenate([np.ones(len(y)), np.full(count, _PULL)]))[0]
        self._unknown = equal  # of a class that is in no measured network
        self._rest.fit(archs, (np.asarray(logs) - self._logs(archs)).tolist(), variance=variance, tune=tune)
        return self

    def predict(self, archs: Sequence[Arch]) -> tuple[_Floats, _Floats]:
        """Return the mean and the standard deviation of the logarithm for each architecture, [N] each."""
        means, deviations = self._rest.predict(archs)
        return means + self._logs(archs), deviations

    def _logs(self, archs: Sequence[Arch]) -> _Floats:
        """Return the logarithm of the sum over classes."""
        found = [self._work(arch) for arch in archs]
        work, whole = self._matrix(found), np.array([sum(each.values()) for each in found])
        logs: _Floats = np.log(work @ self._times + (whole - work.sum(1)) * self._unknown)
        return logs

    def _matrix(self, found: Sequence[Mapping[str, float]]) -> _Floats:
        return np.array([[each.get(name, 0.0) for name in self._classes] for each in found], np.float64)
