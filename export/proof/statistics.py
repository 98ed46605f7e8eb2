"""Compute robust statistics of few, noisy values: trimmed means and bootstrap intervals. Needs numpy only.

Call ``bootstrap(values, statistic)`` for any statistic, ``ratio_interval(logs)`` for a speed-up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]

SAMPLES = 2000  # bootstrap samples
_EXACT = 10**4  # largest number of cases for which the binomial distribution is summed
_TRIM = 0.2  # share cut from each end, so that one very slow call does not change the mean
_LARGEST_DRAW = 10**6  # largest number of values in memory at once in a block bootstrap


def trimmed_mean(values: Floats) -> Floats:
    """Return the mean over the last axis, without its smallest and its largest fifth."""
    cut = int(values.shape[-1] * _TRIM)
    return np.asarray(np.sort(values, axis=-1)[..., cut : values.shape[-1] - cut].mean(axis=-1))


def bootstrap(
    values: Floats,
    statistic: Callable[[Floats], Floats],
    *,
    confidence: float = 0.95,
    seed: int = 0,
    samples: int = SAMPLES,
) -> tuple[float, float, float]:
    """Return (value, low, high): the mean over groups of each group's statistic, and its bootstrap interval.

    Groups are resampled first, then the values in each group. With one group, only the values are resampled.

    values: [groups, values], at least one of each.
    statistic: a function that reduces the last axis.
    samples: number of bootstrap samples.

    Example: ``bootstrap(accuracies[None], lambda x: x.mean(-1))`` for the mean over seeds.
    """
    groups, count = values.shape
    rng = np.random.default_rng(seed)
    value = float(statistic(values).mean())
    chosen = rng.integers(0, groups, (samples, groups, 1))
    resampled = values[chosen, rng.integers(0, count, (samples, groups, count))]
    units = groups if groups > 1 else count
    return value, *widened_interval(statistic(resampled).mean(axis=1), value, units, confidence)


def ratio_interval(logs: Floats, confidence: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """Return (ratio, low, high) from the logarithms of paired ratios.

    The ratio is the mean over processes of the trimmed mean of each process.

    logs: [processes, pairs].
    """
    ratio, low, high = (math.exp(log) for log in bootstrap(logs, trimmed_mean, confidence=confidence, seed=seed))
    return ratio, low, high


def median_interval(times: Floats, confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Return the interval of the median of positive times, by a bootstrap of blocks of neighbouring times.

    Neighbouring times are similar, so resampling single times would give a too narrow interval.

    times: [calls], in the order taken.
    """
    length = max(1, round(math.sqrt(len(times))))
    blocks = math.ceil(len(times) / length)
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, len(times), (SAMPLES // 2, blocks, 1))
    medians = [
        np.median(times[(part + np.arange(length)).reshape(len(part), -1) % len(times)], axis=1)
        for part in np.array_split(starts, max(1, starts.shape[0] * len(times) // _LARGEST_DRAW))
    ]
    centre = math.log(float(np.median(times)))
    low, high = widened_interval(np.log(np.concatenate(medians)), centre, blocks, confidence)
    return math.exp(low), math.exp(high)


def widened_interval(estimates: Floats, centre: float, units: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return percentiles of bootstrap estimates, widened around ``centre`` to correct for few independent units.

    The interval of a bootstrap of n units is too narrow by sqrt((n - 1) / n). It also uses the normal quantile instead
    of Student's t. See Hesterberg 2015, What Teachers Should Know About the Bootstrap, section 4.1. With one unit, the
    percentiles are not widened.

    estimates: [samples], the statistic of each bootstrap sample.
    units: number of independent values that were resampled.
    """
    tail = (1 + confidence) / 2
    low, high = np.quantile(estimates, [1 - tail, tail])
    if units > 1:
        widen = student_quantile(tail, units - 1) / NormalDist().inv_cdf(tail) * math.sqrt(units / (units - 1))
        low, high = centre - widen * (centre - low), centre + widen * (high - centre)
    return min(float(low), centre), max(float(high), centre)


def student_quantile(probability: float, freedom: int) -> float:
    """Return the quantile of Student's t; the relative error is below 2e-5 up to 5,000 degrees of freedom.

    With t = sqrt(freedom) tan(angle), the density of the angle is cos(angle)^(freedom - 1), which is summed here.
    The base installation has no scipy, so this function does not use it.
    """
    angles = np.linspace(-math.pi / 2, math.pi / 2, 20_001)
    density = np.cos((angles[1:] + angles[:-1]) / 2) ** (freedom - 1)
    cumulative = np.concatenate([[0.0], np.cumsum(density)])
    return math.sqrt(freedom) * math.tan(float(np.interp(probability, cumulative / cumulative[-1], angles)))


def binomial_interval(kept: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of Clopper and Pearson for the share behind ``kept`` of ``n``; (0, 1) for n = 0.

    Each bound is the share at which as many as ``kept``, or as few, have half of the remaining probability. Above
    10,000 the interval of Wilson replaces it, which is the same to three digits there.
    """
    tail = (1 - confidence) / 2
    if n > _EXACT:
        z, share = NormalDist().inv_cdf(1 - tail), kept / n
        centre, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
        return max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n))
    counts = np.arange(n + 1)
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    ways = factorials[n] - factorials[counts] - factorials[n - counts]

    def bound(chosen: NDArray[np.int64], rising: bool) -> float:
        low, high = 0.0, 1.0
        for _ in range(60):
            share = (low + high) / 2
            logs = ways[chosen] + chosen * math.log(share) + (n - chosen) * math.log1p(-share)
            if (float(np.exp(logs).sum()) < tail) == rising:
                low = share
            else:
                high = share
        return (low + high) / 2

    lower = 0.0 if kept == 0 else bound(counts[kept:], True)
    upper = 1.0 if kept == n else bound(counts[: kept + 1], False)
    return lower, upper
