"""Test the bootstrap, its widening, and Student's t."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hnas.export.proof.statistics import bootstrap, student_quantile, trimmed_mean, widened_interval


@pytest.mark.parametrize(("freedom", "value"), [(1, 12.7062), (2, 4.3027), (4, 2.7764), (19, 2.0930), (1000, 1.9623)])
def test_student(freedom: int, value: float) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize("freedom", [1, 2, 4, 19, 1000, 5000])
@pytest.mark.parametrize("probability", [0.9, 0.975, 0.995])
def test_student_is_that_of_scipy(probability: float, freedom: int) -> None:
    scipy = pytest.importorskip("scipy.stats")
    assert student_quantile(probability, freedom) == pytest.approx(scipy.t.ppf(probability, freedom), rel=2e-5)


def test_a_trimmed_mean_leaves_a_fifth_out_at_each_end() -> None:
    assert trimmed_mean(np.array([[9.0, 1.0, 2.0, 3.0, -90.0], [1.0, 1.0, 1.0, 1.0, 900.0]])).tolist() == [2.0, 1.0]
    assert trimmed_mean(np.array([1.0, 2.0])) == 1.5


def test_groups_are_the_units_of_an_interval() -> None:
    apart = np.array([[0.0] * 10, [1.0] * 10])
    value, low, high = bootstrap(apart, trimmed_mean)
    assert value == 0.5
    assert (low, high) < (0.0, math.inf)  # two groups say little
    _, low, high = bootstrap(np.random.default_rng(0).normal(0.5, 1e-3, (1, 20)), trimmed_mean)
    assert 0.499 < low < 0.5 < high < 0.501


def test_one_unit_is_not_widened() -> None:
    estimates = np.linspace(0.0, 1.0, 101)
    assert widened_interval(estimates, 0.5, 1) == pytest.approx((0.025, 0.975))
    low, high = widened_interval(estimates, 0.5, 5)
    assert 0.5 - low == pytest.approx(high - 0.5)
    assert high > 1.0
    assert widened_interval(estimates + 5, 0.5, 1)[0] == 0.5  # the interval holds its centre
