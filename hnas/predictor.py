"""Predict a metric of an architecture from few others: Gaussian process regression (Rasmussen & Williams 2006, ch. 2).

``Predictor(space).fit(archs, values).predict(others)`` returns means and standard deviations.

Two architectures are alike where they take the same options. The kernel is a sum: one term for each *kind* of choice
(resolution, width, depth, operation, kernel size, ...), in which every choice counts by itself, and one term for all
choices together. The terms by kind let a few dozen architectures teach the effect of some eighty choices; the common
term takes what is not a sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize

from hnas.space import Arch, Space

Values = NDArray[np.float64]
_ABSENT = -1.0  # the code of a choice that is not active
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
        self._names = tuple(name for name, choice in space.choices.items() if len(choice.options) > 1)
        choices = [space.choices[name] for name in self._names]
        self._codes = [_code(choice.options) for choice in choices]
        self._ordered = np.array([isinstance(choice.options[0], int | float) for choice in choices])
        kinds = [name.rpartition(".")[2] for name in self._names]
        self._groups = [np.array([kind == each for each in kinds]) for kind in dict.fromkeys(kinds)]
        self._logs = self._prior()
        self._seen = np.zeros((0, len(self._names)))

    def fit(self, archs: Sequence[Arch], values: Sequence[float], *, tune: bool = True) -> Self:
        """Learn from ``values`` of ``archs``, and return this predictor.

        tune: also learn how much each kind of choice counts; otherwise keep what was learned before.
        """
        y = np.asarray(values, np.float64)
        self._mean, self._scale = float(y.mean()), float(y.std()) or 1.0
        self._seen = self.encode(archs)
        self._y = (y - self._mean) / self._scale
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
        return self.predict_codes(self.encode(archs))

    def predict_codes(self, codes: Values) -> tuple[Values, Values]:
        """Return the same for architectures that ``encode`` has encoded, [N, choices]."""
        across = self._kernel(self._parts(codes, self._seen), self._logs)
        explained = solve_triangular(self._factor[0], across.T, lower=True)
        variance = np.exp(self._logs[:-2]).sum() - np.square(explained).sum(0)
        return self._mean + self._scale * (across @ self._weights), self._scale * np.sqrt(np.maximum(variance, 1e-12))

    def encode(self, archs: Sequence[Arch]) -> Values:
        """Return the options of each architecture as numbers, [N, choices]. Numbers are evenly spaced from 0 to 1."""
        rows = [
            [
                codes[arch[name]] if name in arch else _ABSENT
                for name, codes in zip(self._names, self._codes, strict=True)
            ]
            for arch in archs
        ]
        return np.array(rows, np.float64).reshape(len(archs), len(self._names))

    def _prior(self) -> Values:
        """Return the prior of the logarithms: the variance of each kind, of the common term, its decay, the noise."""
        share = 0.8 / max(1, len(self._groups))
        return np.log([*[share] * len(self._groups), 0.2, 4.0, _NOISE])

    def _parts(self, a: Values, b: Values) -> Values:
        """Return the mean similarity of the choices of each kind, and of all choices, [kinds + 1, len(a), len(b)]."""
        left, right = a[:, None, :], b[None, :, :]
        both = (left != _ABSENT) & (right != _ABSENT)
        far = np.where(both & self._ordered, np.abs(left - right), left != right)
        return np.stack([1 - far[:, :, group].mean(2) for group in self._groups] + [1 - far.mean(2)])

    def _kernel(self, parts: Values, logs: Values) -> Values:
        *variances, decay = np.exp(logs[:-1])
        common = variances[-1] * np.exp(-decay * (1 - parts[-1]))
        added: Values = np.tensordot(variances[:-1], parts[:-1], 1) + common
        return added

    def _covariance(self, parts: Values, logs: Values) -> Values:
        noisy: Values = self._kernel(parts, logs) + (np.exp(logs[-1]) + _JITTER) * np.eye(len(self._y))
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


def _code(options: Sequence[Any]) -> dict[Any, float]:
    """Return option -> number: its rank among numbers as a share, its place among texts."""
    steps = max(1, len(options) - 1) if isinstance(options[0], int | float) else 1
    return {option: place / steps for place, option in enumerate(options)}
