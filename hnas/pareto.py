"""Candidates and fronts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hnas.space import Arch


@dataclass(frozen=True)
class Candidate:
    """An architecture and its metrics, for instance {"accuracy": 0.91, "latency_ms": 0.12}."""

    arch: Arch
    metrics: Mapping[str, float]


def dominates(a: Candidate, b: Candidate, cost: str) -> bool:
    """Whether ``a`` is no worse than ``b`` in accuracy and cost, and better in one."""
    better = a.metrics["accuracy"] > b.metrics["accuracy"] or a.metrics[cost] < b.metrics[cost]
    return better and a.metrics["accuracy"] >= b.metrics["accuracy"] and a.metrics[cost] <= b.metrics[cost]


def front(candidates: Iterable[Candidate], cost: str) -> list[Candidate]:
    """The candidates that no other dominates, cheapest first; of equal ones the first stays.

    Candidates without an accuracy were outside a window, never scored, and are in no front.
    """
    kept: list[Candidate] = []
    scored = [c for c in candidates if "accuracy" in c.metrics]
    for candidate in sorted(scored, key=lambda c: (c.metrics[cost], -c.metrics["accuracy"])):
        if not kept or candidate.metrics["accuracy"] > kept[-1].metrics["accuracy"]:
            kept.append(candidate)
    return kept
