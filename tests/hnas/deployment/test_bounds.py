"""A bound is one value: parsed from text, checked, and printed beside what was reached."""

from __future__ import annotations

from math import inf

import pytest

from hnas.deployment.bounds import Bound


@pytest.mark.parametrize(
    ("metric", "text", "limit", "goal", "inside", "outside"),
    [
        ("latency_ms", "5ms", 5.0, "latency <= 5 ms", 5.0, 5.1),
        ("size_bytes", "300KB", 3e5, "size <= 0.3 MB", 3e5, 4e5),
        ("accuracy", "92%", 0.92, "accuracy >= 92.0%", 0.92, 0.91),
    ],
)
def test_a_bound_is_read_checked_and_printed(
    metric: str, text: str, limit: float, goal: str, inside: float, outside: float
) -> None:
    bound = Bound.parse(metric, text)
    assert (bound.limit, str(bound)) == (limit, goal)
    assert bound.admits(inside)
    assert not bound.admits(outside)


def test_the_nearest_is_the_best_finite_value() -> None:
    assert Bound("latency_ms", high=5.0).nearest([7.0, 6.0, inf]) == 6.0
    assert Bound("accuracy", low=0.9).nearest([0.7, 0.8]) == 0.8
    assert Bound("accuracy", low=0.9).nearest([inf]) is None


def test_what_was_reached_is_said_beside_the_limit() -> None:
    latency = Bound("latency_ms", high=5.0)
    assert latency.describe_nearest(6.0) == "the fastest takes 6 ms (asked: 5)"
    assert latency.describe_miss(6.0) == "it takes 6 ms (asked: 5)"
    assert latency.describe_miss(6.0, predicted=True) == "it is predicted to take 6 ms (asked: 5)"
    accuracy = Bound("accuracy", low=0.92)
    assert accuracy.describe_miss(0.9, predicted=True) == "it reaches 90.0% on the search images (asked: 92.0%)"
    assert Bound("size_bytes", high=5e3).describe_miss(9e3) == "its file has 9 KB (asked: 5)"


def test_other_text_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^latency '5' is not understood; write for example 5ms"):
        Bound.parse("latency_ms", "5")
