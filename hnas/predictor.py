"""Predict a metric of an architecture from few others: Gaussian process regression (Rasmussen & Williams 2006, ch. 2).

``Predictor(space).fit(archs, values).predict(others)`` returns means and standard deviations.

Two architectures are alike where they take the same options. The kernel is a sum: one term for each *kind* of choice
(resolution, width, depth, operation, kernel size, ...), in which every choice counts by itself, and one term for all
choices together. The terms by kind let a few dozen architectures teach the effect of some eighty choices; the common
term takes what is not a sum.

Every option of a choice is a point, and the squared distance of two points is how unlike the options are. So the
similarities of many architectures are products of matrices.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize

from hnas.space import Arch, Space

Values = NDArray[np.float64]
_JITTER = 1e-6
_SPREAD = 1.5  # standard deviation of the prior of every logarithm below
_NOISE = 0.02  # prior of the share of the variance that no option explains


class Predictor:
    """A Gaussian process over the members of ``space``.

    Example:
        found = Predictor(space).fit(archs, accuracies)
        means, deviations = found.predict([space.largest])
    """

    def __init__(self, space: Space) -> None:
        several = {name: choice for name, choice in space.choices.items() if len(choice.options) > 1}
        kinds = {name: name.rpartition(".")[2] for name in several}
        self._names = [name for kind in dict.fromkeys(kinds.values()) for name in several if kinds[name] == kind]
        self._points = [_points(several[name].options) for name in self._names]
        sizes = Counter(kinds[name] for name in self._names)
        self._counts = np.array(list(sizes.values()), np.int64)
        widths = Counter[str]()  # coordinates of each kind
        for name, points in zip(self._names, self._points, strict=True):
            widths[kinds[name]] += len(points[None])
        self._edges = np.cumsum([0, *widths.values()])
        self._logs = self._prior()
        self._seen = np.zeros((0, int(self._edges[-1])))

    def fit(self, archs: Sequence[Arch], values: Sequence[float], *, variance: float = 0.0, tune: bool = True) -> Self:
        """Learn from ``values`` of ``archs``, and return this predictor.

        variance: of each value, if it were measured again on other data; what it explains is not learned.
        tune: also learn how much each kind of choice counts; otherwise keep what was learned before.
        """
        y = np.asarray(values, np.float64)
        self._mean, self._scale = float(y.mean()), float(y.std()) or math.sqrt(variance) or 1.0
        self._seen = self.encode(archs)
        self._y = (y - self._mean) / self._scale
        self._noise = variance / self._scale**2
        parts = self._parts(self._seen, self._seen)
        if tune:
            start = self._logs
            found = minimize(self._loss, start, (parts,), method="L-BFGS-B", jac=True, options={"maxiter": 30})
            self._logs = found.x if np.isfinite(found.fun) else start
        self._factor = cho_factor(self._covariance(parts, self._logs), lower=True)
        self._weights = cho_solve(self._factor, self._y)
        return self

    def predict(self, archs: Sequence[Arch]) -> tuple[Values, Values]:
        """Return the mean and the standard deviation of the metric of each architecture, [N] each."""
        across = self._kernel(self._parts(self.encode(archs), self._seen), self._logs)
        explained = solve_triangular(self._factor[0], across.T, lower=True)
        variance = np.exp(self._logs[:-2]).sum() - np.square(explained).sum(0)
        return self._mean + self._scale * (across @ self._weights), self._scale * np.sqrt(np.maximum(variance, 1e-12))

    def encode(self, archs: Sequence[Arch]) -> Values:
        """Return the points of the options that each architecture takes, one after the other, [N, coordinates]."""
        rows = [
            [x for name, points in zip(self._names, self._points, strict=True) for x in points[arch.get(name)]]
            for arch in archs
        ]
        return np.array(rows, np.float64).reshape(len(archs), int(self._edges[-1]))

    def _prior(self) -> Values:
        """Return the prior of the logarithms: the variance of each kind, of the common term, its decay, the noise."""
        share = 0.8 / max(1, len(self._counts))
        return np.log([*[share] * len(self._counts), 0.2, 4.0, _NOISE])

    def _parts(self, a: Values, b: Values) -> Values:
        """Return the mean similarity of the choices of each kind, and of all choices, [kinds + 1, len(a), len(b)]."""
        kinds = [slice(*edges) for edges in pairwise(self._edges)]
        far = np.array([_squared_distances(a[:, kind], b[:, kind]) for kind in kinds])
        far = far.reshape(len(kinds), len(a), len(b))  # also without any kind
        together = far.sum(0) / max(1, self._counts.sum())
        parts: Values = 1 - np.concatenate([far / self._counts[:, None, None], together[None]])
        return parts

    def _kernel(self, parts: Values, logs: Values) -> Values:
        *variances, decay = np.exp(logs[:-1])
        common = variances[-1] * np.exp(-decay * (1 - parts[-1]))
        added: Values = np.tensordot(variances[:-1], parts[:-1], 1) + common
        return added

    def _covariance(self, parts: Values, logs: Values) -> Values:
        noisy: Values = self._kernel(parts, logs) + (np.exp(logs[-1]) + self._noise + _JITTER) * np.eye(len(self._y))
        return noisy

    def _loss(self, logs: Values, parts: Values) -> tuple[float, Values]:
        """Return the negative logarithm of likelihood times prior, without constants, and its gradient (eq. 5.9)."""
        try:
            factor = cho_factor(self._covariance(parts, logs), lower=True)
        except np.linalg.LinAlgError:
            return 1e12, np.zeros_like(logs)
        weights = cho_solve(factor, self._y)
        off = logs - self._prior()
        loss = 0.5 * self._y @ weights + np.log(np.diag(factor[0])).sum() + 0.5 * np.square(off / _SPREAD).sum()
        *variances, common, decay, noise = np.exp(logs)
        far = 1 - parts[-1]
        together = common * np.exp(-decay * far)
        slopes = [variance * part for variance, part in zip(variances, parts[:-1], strict=True)]
        slopes += [together, -decay * far * together, noise * np.eye(len(self._y))]
        inner = 0.5 * (cho_solve(factor, np.eye(len(self._y))) - np.outer(weights, weights))
        gradient = np.array([np.vdot(inner, slope) for slope in slopes]) + off / _SPREAD**2
        return float(loss), gradient


def _points(options: Sequence[Any]) -> dict[Any, Values]:
    """Return option -> point. The key None is for a choice that is not active.

    1. Numbers are evenly spaced: from the smallest to the largest the squared distance is 1.
    2. Others, and a choice that is not active, have the squared distance 1 from every option.
    """
    if not isinstance(options[0], int | float):  # case 2
        return dict(zip((*options, None), np.sqrt(0.5) * np.eye(len(options) + 1), strict=True))
    steps = len(options) - 1
    ranks = np.tri(len(options), steps, -1) / np.sqrt(steps)
    absent = np.array([*[0.5 / np.sqrt(steps)] * steps, np.sqrt(0.75)])
    return {**dict(zip(options, np.pad(ranks, ((0, 0), (0, 1))), strict=True)), None: absent}


def _squared_distances(a: Values, b: Values) -> Values:
    found: Values = np.square(a).sum(1)[:, None] + np.square(b).sum(1)[None] - 2 * a @ b.T
    return np.maximum(found, 0.0)
