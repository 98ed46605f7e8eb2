"""Statistics of the studies: tau, intervals, verdicts, the noise ceiling and the hypervolume."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from hnas.benchmarks.papers import statistics
from hnas.benchmarks.papers.statistics import FAILS, HOLDS, UNSEEN, Interval


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=20))
def test_tau_is_tau_b(pairs: list[tuple[int, int]]) -> None:
    x, y = (np.array(each) for each in zip(*pairs, strict=True))
    signs = [np.sign(np.subtract.outer(each, each)) for each in (x, y)]
    untied = math.prod(np.sqrt((sign**2).sum()) for sign in signs)
    expected = (signs[0] * signs[1]).sum() / untied if untied else 0
    assert statistics.kendall(x, y) == pytest.approx(expected)


def test_the_interval_of_tau_is_that_of_resampled_architectures() -> None:
    rng = np.random.default_rng(0)
    x = rng.random(30)
    y = x + rng.normal(0, 0.3, 30)
    drawn = [rng.integers(0, 30, 30) for _ in range(500)]
    low, high = np.quantile([kendalltau(x[d], y[d])[0] for d in drawn], [0.025, 0.975])
    found = statistics.kendall_interval(x, y)
    assert found.low == pytest.approx(low, abs=0.05)
    assert found.high == pytest.approx(high, abs=0.05)


def test_intervals_over_five_seeds_cover_what_they_promise() -> None:
    rng = np.random.default_rng(0)
    found = [statistics.mean_interval(rng.normal(0, 1, 5)) for _ in range(300)]
    assert 0.91 <= np.mean([each.low <= 0 <= each.high for each in found]) <= 0.985


def test_one_seed_gives_no_verdict() -> None:
    assert statistics.judge_interval(statistics.paired([0.9], [0.1])) == UNSEEN


@pytest.mark.parametrize(
    ("low", "high", "above", "answer"),
    [
        (0.01, 0.03, 0.0, HOLDS),
        (-0.01, 0.03, 0.0, UNSEEN),
        (-0.03, -0.01, 0.0, FAILS),
        (0.05, 0.2, 0.1, FAILS),
        (0.11, 0.2, 0.1, HOLDS),
        (-0.1, 0.2, 0.1, UNSEEN),
    ],
)
def test_a_verdict_is_drawn_from_the_interval(low: float, high: float, above: float, answer: str) -> None:
    assert statistics.judge_interval(Interval((low + high) / 2, low, high, 5), above) == answer


def test_the_ceiling_falls_with_the_noise_of_the_seeds() -> None:
    rng = np.random.default_rng(0)
    real = rng.random((40, 1))
    still, noisy = (statistics.ceiling(real + rng.normal(0, sd, (40, 4))) for sd in (0.0, 0.5))
    assert still == pytest.approx(1.0)
    assert noisy < 0.6
    assert math.isnan(statistics.ceiling(real))


def test_hypervolume_is_the_dominated_area() -> None:
    assert statistics.hypervolume([0.9, 0.8, 0.4], [2, 1, 1], (0.5, 3)) == pytest.approx(0.7)
    assert statistics.hypervolume([0.4], [1], (0.5, 3)) == 0.0
