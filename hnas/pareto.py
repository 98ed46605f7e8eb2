"""Candidates of a search and their Pareto front.

``front(candidates, "latency_ms")`` returns the candidates that no other one dominates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hnas.space import Arch


@dataclass(frozen=True)
class Candidate:
    """An architecture and its metrics by name.

    Example: ``Candidate(arch, {"accuracy": 0.91, "latency_ms": 0.12})``
    """

    arch: Arch
    metrics: Mapping[str, float]


def dominates(a: Candidate, b: Candidate, cost: str) -> bool:
    """Return whether ``a`` is no worse than ``b`` in accuracy and cost, and better in one of them."""
    better = a.metrics["accuracy"] > b.metrics["accuracy"] or a.metrics[cost] < b.metrics[cost]
    return better and a.metrics["accuracy"] >= b.metrics["accuracy"] and a.metrics[cost] <= b.metrics[cost]


def front(candidates: Iterable[Candidate], cost: str) -> list[Candidate]:
    """Return the Pareto front, cheapest first. Of candidates with equal metrics, the first is kept.

    cost: the name of the metric to minimise, against the accuracy to maximise.

    Candidates without an accuracy are left out. The search did not score them, because they violate a constraint.
    """
    kept: list[Candidate] = []
    scored = [c for c in candidates if "accuracy" in c.metrics]
    for candidate in sorted(scored, key=lambda c: (c.metrics[cost], -c.metrics["accuracy"])):
        if not kept or candidate.metrics["accuracy"] > kept[-1].metrics["accuracy"]:
            kept.append(candidate)
    return kept
