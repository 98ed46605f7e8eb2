"""Predict a latency from few measured ones: the time of each class of kernel, and a Gaussian process for the rest.

``FittedLatency(Work(space, skeleton)).fit(archs, logs).predict(others)`` returns means and deviations of logarithms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from hnas.cost.work import NotSeparable, Work
from hnas.predictor import Predictor
from hnas.space import Arch

_Floats = NDArray[np.float64]
_PULL = 0.01  # towards equal times of all work; it decides only classes of kernel that nothing measured contains


class FittedLatency:
    """A model of a latency, or of another positive cost that adds up over kernels.

    1. The latency is the sum over classes of kernel of work times the time of a unit of it. These times are not
       negative, and fitted to relative errors (Lawson & Hanson 1974). So a runtime that is slow in one class, such as
       depthwise convolutions of 7 x 7, is known from a dozen networks.
    2. A Gaussian process predicts the logarithm of what is left. Its deviations are widened by how much larger the
       errors of networks are that were left out of the fit.

    work: counts the work of the architectures; several models may share it.

    Example:
        model = FittedLatency(Work(space, supernet.skeleton)).fit(archs, numpy.log(milliseconds))
        means, deviations = model.predict([space.largest])

    Raises:
        NotSeparable: no operation of the largest network is known.
    """

    def __init__(self, work: Work) -> None:
        self._work, self._rest = work, Predictor(work.space)
        if not any(work(work.space.largest).values()):
            raise NotSeparable(f"{work.space.name}: no operation of its networks is known")
        self._classes: list[str] = []

    def fit(self, archs: Sequence[Arch], logs: Sequence[float], *, variance: float = 0.0, tune: bool = True) -> Self:
        """Learn from the logarithms of the latencies of ``archs``, and return this model.

        variance, tune: as in ``Predictor.fit``.
        """
        found = [self._work(arch) for arch in archs]
        self._classes = sorted({name for each in found for name in each})
        y, work = np.exp(logs), self._matrix(found)
        self._unknown = float(y.sum() / work.sum())  # the time of a unit in a class that is in no measured network
        self._times = _times(work, y, self._unknown)
        left = np.log(y) - np.log(work @ self._times)
        self._widening = max(1.0, _rms(_left_out(work, y, self._unknown)) / max(_rms(left), 1e-9))
        self._rest.fit(archs, left.tolist(), variance=variance, tune=tune)
        return self

    @property
    def times(self) -> dict[str, float]:
        """Return class of kernel -> the time of a unit of work, in the unit of the latencies."""
        return dict(zip(self._classes, self._times.tolist(), strict=True))

    def predict(self, archs: Sequence[Arch]) -> tuple[_Floats, _Floats]:
        """Return the mean and the standard deviation of the logarithm for each architecture, [N] each."""
        means, deviations = self._rest.predict(archs)
        return means + self._logs(archs), deviations * self._widening

    def _logs(self, archs: Sequence[Arch]) -> _Floats:
        """Return the logarithm of the sum over classes."""
        found = [self._work(arch) for arch in archs]
        work, whole = self._matrix(found), np.array([sum(each.values()) for each in found])
        logs: _Floats = np.log(work @ self._times + (whole - work.sum(1)) * self._unknown)
        return logs

    def _matrix(self, found: Sequence[Mapping[str, float]]) -> _Floats:
        return np.array([[each.get(name, 0.0) for name in self._classes] for each in found], np.float64)


def _times(work: _Floats, y: _Floats, equal: float) -> _Floats:
    """Return the time of a unit of work in each class: work is [N, classes], and y is [N].

    equal: the time of a unit, if it were the same in every class.
    """
    count = work.shape[1]
    left = np.concatenate([work / y[:, None], _PULL / equal * np.eye(count)])
    times: _Floats = nnls(left, np.concatenate([np.ones(len(y)), np.full(count, _PULL)]))[0]
    return times


def _left_out(work: _Floats, y: _Floats, equal: float) -> _Floats:
    """Return the error of the logarithm of each network, with times that were fitted to the others.

    The networks that times were fitted to have smaller errors than others: about as many times as networks are fitted.
    """
    rows = np.arange(len(y))
    fitted = [work[k] @ _times(work[rows != k], y[rows != k], equal) for k in rows]
    return np.asarray(np.log(y) - np.log(fitted))


def _rms(values: _Floats) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
