"""The statistics that a verdict rests on: rank correlation, paired intervals, hypervolume, the noise ceiling.

Seeds are few, so every interval over them is widened for it, and a verdict is drawn from the interval alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hnas.export.proof.measurement import student_quantile

Array = NDArray[np.float64]

SAMPLES = 2000  # of a bootstrap
CONFIDENCE = 0.95
HOLDS, FAILS, UNSEEN = "holds", "does not hold", "no difference seen"


@dataclass(frozen=True)
class Interval:
    """``value`` with the ends of its 95 % interval, from ``n`` seeds or architectures; units: each seed's own."""

    value: float
    low: float
    high: float
    n: int
    units: tuple[float, ...] = ()

    def line(self, scale: float = 1.0, digits: int = 2, sign: str = "+") -> str:
        """For a person: value [low, high], each times ``scale``; sign: "" for what is no difference."""
        value, low, high = (f"{scale * x:{sign}.{digits}f}" for x in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"

    def to_json(self) -> dict[str, Any]:
        """The fields, rounded to six digits; an end that is infinite is null."""
        ends = {key: getattr(self, key) for key in ("value", "low", "high", "n")}
        found: dict[str, Any] = {key: round(v, 6) if math.isfinite(v) else None for key, v in ends.items()}
        return found | {"units": [round(x, 6) for x in self.units]}


def judge(interval: Interval, above: float = 0.0) -> str:
    """What a difference says of the claim that it is more than ``above``.

    1. ``holds``: the whole interval lies above.
    2. ``no difference seen``: not 1, and the interval covers 0.
    3. ``does not hold``: neither; the difference is there, but it is another one.
    """
    if interval.low > above:
        return HOLDS
    return UNSEEN if interval.low <= 0 <= interval.high else FAILS


def mean_interval(values: ArrayLike) -> Interval:
    """The mean over seeds and its bootstrap interval, widened by Student's t.

    A bootstrap of n units is too narrow by sqrt((n - 1) / n) and by the normal's quantile in the place of Student's
    (Hesterberg 2015, What Teachers Should Know About the Bootstrap, section 4.1). One seed has no interval: it is
    infinite, so that no verdict rests on it.
    """
    x = np.asarray(values, float)
    n = len(x)
    mean = float(x.mean())
    if n < 2:
        return Interval(mean, -math.inf, math.inf, n, tuple(map(float, x)))
    rng = np.random.default_rng(0)
    means = x[rng.integers(0, n, (SAMPLES * 5, n))].mean(1)
    tail = (1 + CONFIDENCE) / 2
    low, high = np.quantile(means, [1 - tail, tail])
    widen = student_quantile(tail, n - 1) / NormalDist().inv_cdf(tail) * math.sqrt(n / (n - 1))
    ends = mean - widen * (mean - float(low)), mean + widen * (float(high) - mean)
    return Interval(mean, *ends, n, tuple(map(float, x)))


def paired(a: ArrayLike, b: ArrayLike) -> Interval:
    """The mean of a - b over seeds; entry i of both comes from the same seed."""
    return mean_interval(np.asarray(a, float) - np.asarray(b, float))


def kendall(x: ArrayLike, y: ArrayLike) -> float:
    """Kendall's tau-b of two rankings of the same architectures; 0 where one of them is constant."""
    both, own = _concordance(x, y)
    ones = np.ones((1, len(both)))
    return float(_tau(ones, both, own)[0])


def kendall_interval(x: ArrayLike, y: ArrayLike) -> Interval:
    """Tau-b with the percentile interval of a bootstrap over architectures."""
    both, own = _concordance(x, y)
    n = len(both)
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=SAMPLES).astype(float)
    low, high = np.quantile(_tau(weights, both, own), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(_tau(np.ones((1, n)), both, own)[0]), float(low), float(high), n)


def _concordance(x: ArrayLike, y: ArrayLike) -> tuple[Array, tuple[Array, Array]]:
    """[n, n] signs of pairs: the product of both rankings, and each one's own square (0 for a tie)."""
    sx, sy = (np.sign(np.subtract.outer(v, v)) for v in (np.asarray(x, float), np.asarray(y, float)))
    return sx * sy, (sx * sx, sy * sy)


def _tau(weights: Array, both: Array, own: tuple[Array, Array]) -> Array:
    """Tau-b for rows of weights: how often each architecture was drawn; a pair of equals is a tie and drops out."""
    above, x, y = (np.einsum("bn,bn->b", weights @ m, weights) for m in (both, *own))
    below = np.sqrt(x * y)
    return np.asarray(np.divide(above, below, out=np.zeros_like(above), where=below > 0))


def partial_kendall(x: ArrayLike, y: ArrayLike, given: ArrayLike) -> float:
    """Kendall's partial tau of x and y where both follow ``given`` (Kendall 1942)."""
    xy, xz, yz = kendall(x, y), kendall(x, given), kendall(y, given)
    below = math.sqrt((1 - xz**2) * (1 - yz**2))
    return (xy - xz * yz) / below if below > 1e-9 else 0.0


def ceiling(accuracies: ArrayLike) -> float:
    """The tau that a perfect predictor could reach: between the means of two halves of the seeds, over every halving.

    accuracies: [architectures, seeds]. The halves have fewer seeds than the truth that a metric is held against, so
    this is a low estimate of the ceiling.
    """
    table = np.asarray(accuracies, float)
    seeds = table.shape[1]
    if seeds < 2:
        return math.nan
    taus = []
    for half in combinations(range(seeds), seeds // 2):
        other = [s for s in range(seeds) if s not in half][: seeds // 2]
        taus.append(kendall(table[:, list(half)].mean(1), table[:, other].mean(1)))
    return float(np.mean(taus))


def hypervolume(accuracies: Sequence[float], costs: Sequence[float], worst: tuple[float, float]) -> float:
    """The area that the points (accuracy up, cost down) dominate, against ``worst`` = (accuracy, cost)."""
    from pymoo.indicators.hv import HV

    points = np.array([[-a, c] for a, c in zip(accuracies, costs, strict=True)], float).reshape(-1, 2)
    inside = points[(points[:, 0] < -worst[0]) & (points[:, 1] < worst[1])]
    return float(HV(ref_point=np.array([-worst[0], worst[1]]))(inside)) if len(inside) else 0.0
