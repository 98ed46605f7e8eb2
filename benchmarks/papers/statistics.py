"""Statistics of the papers' studies: rank correlation, paired intervals, hypervolume, noise ceiling.

Every interval over seeds is widened, because seeds are few. A verdict depends on the interval alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import kendalltau

from hnas.export.proof.statistics import SAMPLES, bootstrap, widened_interval

CONFIDENCE = 0.95
HOLDS, FAILS, UNSEEN = "holds", "does not hold", "no difference seen"


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval.

    n: number of seeds or architectures.
    units: the value of each seed; empty for architectures.
    """

    value: float
    low: float
    high: float
    n: int
    units: tuple[float, ...] = ()

    def line(self, scale: float = 1.0, digits: int = 2, sign: str = "+") -> str:
        """Return ``value [low, high]`` for a person, each times ``scale``; sign "+" suits differences, "" the rest."""
        value, low, high = (f"{scale * x:{sign}.{digits}f}" for x in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"

    def to_json(self) -> dict[str, Any]:
        """Return the fields, rounded to six digits; an infinite end becomes null."""
        ends = {key: getattr(self, key) for key in ("value", "low", "high", "n")}
        found: dict[str, Any] = {key: round(v, 6) if math.isfinite(v) else None for key, v in ends.items()}
        return found | {"units": [round(x, 6) for x in self.units]}


def judge_interval(interval: Interval, above: float = 0.0) -> str:
    """Return the verdict on the claim that a difference is larger than ``above``.

    1. ``holds``: the whole interval lies above.
    2. ``no difference seen``: not case 1, and the interval covers 0.
    3. ``does not hold``: neither; there is a difference, but not the claimed one.
    """
    if interval.low > above:
        return HOLDS  # case 1
    return UNSEEN if interval.low <= 0 <= interval.high else FAILS  # case 2, case 3


def mean_interval(values: ArrayLike) -> Interval:
    """Return the mean over seeds and its bootstrap interval, widened for few seeds.

    One seed has no interval: its ends are infinite, so that no verdict can rest on it.
    """
    x = np.asarray(values, float)
    units = tuple(map(float, x))
    if len(x) < 2:
        return Interval(float(x.mean()), -math.inf, math.inf, len(x), units)
    mean, low, high = bootstrap(x[None], lambda each: np.asarray(each.mean(-1)), confidence=CONFIDENCE, samples=10_000)
    return Interval(mean, low, high, len(x), units)


def paired(a: ArrayLike, b: ArrayLike) -> Interval:
    """Return the mean of a - b over seeds; entry i of both comes from the same seed."""
    return mean_interval(np.asarray(a, float) - np.asarray(b, float))


def kendall(x: ArrayLike, y: ArrayLike) -> float:
    """Return Kendall's tau-b of two rankings of the same architectures; 0 where one ranking is constant."""
    # The p-value is not used. Its asymptotic form is the fast one, and divides by zero for two architectures.
    tau = float(kendalltau(x, y, method="asymptotic" if np.size(x) > 2 else "auto").statistic)
    return 0.0 if math.isnan(tau) else tau


def kendall_interval(x: ArrayLike, y: ArrayLike) -> Interval:
    """Return tau-b with the percentile interval of a bootstrap over architectures."""
    a, b = np.asarray(x, float), np.asarray(y, float)
    n = len(a)
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=SAMPLES)
    drawn = [np.repeat(np.arange(n), row) for row in counts]
    tau, taus = kendall(a, b), np.array([kendall(a[rows], b[rows]) for rows in drawn])
    # Units 1: many architectures need no widening.
    low, high = widened_interval(taus, tau, units=1, confidence=CONFIDENCE)
    return Interval(tau, low, high, n)


def partial_kendall(x: ArrayLike, y: ArrayLike, given: ArrayLike) -> float:
    """Return Kendall's partial tau of x and y where both follow ``given`` (Kendall 1942)."""
    xy, xz, yz = kendall(x, y), kendall(x, given), kendall(y, given)
    below = math.sqrt((1 - xz**2) * (1 - yz**2))
    return (xy - xz * yz) / below if below > 1e-9 else 0.0


def ceiling(accuracies: ArrayLike) -> float:
    """Return the tau that a perfect predictor could reach; NaN for one seed.

    The result is the mean tau between two halves of the seeds, over every way to divide the seeds. Metrics are compared
    with the mean over all seeds, which has less noise than a half. So the result is a low estimate of the ceiling.

    accuracies: [architectures, seeds].
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
    """Return the area that the points dominate, up to ``worst`` = (accuracy, cost).

    Higher accuracy and lower cost are better. Points beyond ``worst`` do not count.
    """
    from pymoo.indicators.hv import HV

    points = np.array([[-a, c] for a, c in zip(accuracies, costs, strict=True)], float).reshape(-1, 2)
    inside = points[(points[:, 0] < -worst[0]) & (points[:, 1] < worst[1])]
    return float(HV(ref_point=np.array([-worst[0], worst[1]]))(inside)) if len(inside) else 0.0
