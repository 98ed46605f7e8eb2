"""Hard constraints on latency, size and accuracy.

Make one from the text of an option: `Bound.parse("latency_ms", "5ms")`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf, isfinite
from typing import Self

from hnas import units


@dataclass(frozen=True)
class _Metric:
    """Define how a metric is read from an option and printed.

    parse: returns the value of an option's text.
    upper: true: a bound is the largest allowed value; false: the smallest.
    goal: returns the text of a bound in a plan.
    figure: returns the text of a value, with its unit.
    asked: returns the text of the limit, without its unit.
    subnet: the sentence about the value of a subnet; "{}" stands for the value.
    artifact: the sentence about the value of an artifact; "{}" stands for the value.
    """

    parse: Callable[[str], float]
    upper: bool
    goal: Callable[[float], str]
    figure: Callable[[float], str]
    asked: Callable[[float], str]
    subnet: str
    artifact: str


_METRICS = {
    "latency_ms": _Metric(
        parse=units.parse_latency_ms,
        upper=True,
        goal=lambda limit: f"latency <= {limit:g} ms",
        figure=lambda value: f"{value:.3g} ms",
        asked=lambda limit: f"{limit:g}",
        subnet="the fastest takes {}",
        artifact="it takes {}",
    ),
    "accuracy": _Metric(
        parse=units.parse_share,
        upper=False,
        goal=lambda limit: f"accuracy >= {limit:.1%}",
        figure=lambda value: f"{value:.1%}",
        asked=lambda limit: f"{limit:.1%}",
        subnet="the most accurate inside the other bounds reaches {}",
        artifact="it reaches {} on the search images",
    ),
    "size_bytes": _Metric(
        parse=units.parse_size_bytes,
        upper=True,
        goal=lambda limit: f"size <= {limit / 1e6:g} MB",
        figure=lambda value: f"{value / 1e3:.3g} KB",
        asked=lambda limit: f"{limit / 1e3:g}",
        subnet="the smallest has {} of weights",
        artifact="its file has {}",
    ),
}


@dataclass(frozen=True)
class Bound:
    """A hard constraint on one metric: ``low`` <= value <= ``high``. One of the two is infinite.

    metric: "latency_ms", "accuracy" (0 to 1) or "size_bytes".

        bound = Bound.parse("latency_ms", "5ms")
        bound.admits(4.2)  # True
        str(bound)  # "latency <= 5 ms"
    """

    metric: str
    low: float = -inf
    high: float = inf

    @classmethod
    def parse(cls, metric: str, text: str) -> Self:
        """Return the bound that an option such as "5ms", "92%" or "300KB" gives. Raise ValueError for other text."""
        limit = _METRICS[metric].parse(text)
        return cls(metric, high=limit) if _METRICS[metric].upper else cls(metric, low=limit)

    @property
    def limit(self) -> float:
        """Return the finite end of the bound."""
        return self.high if isfinite(self.high) else self.low

    def admits(self, value: float) -> bool:
        """Return whether ``value`` satisfies the bound."""
        return self.low <= value <= self.high

    def nearest(self, values: Iterable[float]) -> float | None:
        """Return the best finite value in the direction of the bound, or None if no value is finite."""
        finite = [value for value in values if isfinite(value)]
        best = min if isfinite(self.high) else max
        return best(finite, default=None)

    def describe_nearest(self, value: float) -> str:
        """Return the words for the best value that a search reached: "the fastest takes 6 ms (asked: 5)"."""
        return self._against_limit(_METRICS[self.metric].subnet, value)

    def describe_miss(self, value: float, *, predicted: bool = False) -> str:
        """Return the words for an artifact that misses the bound: "it takes 6 ms (asked: 5)"."""
        words = _METRICS[self.metric].artifact
        return self._against_limit(words.replace("it takes", "it is predicted to take") if predicted else words, value)

    def _against_limit(self, words: str, value: float) -> str:
        metric = _METRICS[self.metric]
        return f"{words.format(metric.figure(value))} (asked: {metric.asked(self.limit)})"

    def __str__(self) -> str:
        return _METRICS[self.metric].goal(self.limit)
