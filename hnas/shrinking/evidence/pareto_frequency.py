"""Pareto frequency (PAD-NAS, arXiv 2005.07564, section 3.3): how often the good architectures take an operation.

One-shot accuracy is noisy, so not the front alone is counted but everything in the first non-domination ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hnas.pareto import Candidate, front
from hnas.shrinking import loop as shrinking
from hnas.space import Option, Space
from hnas.study import Study

RANKS = 9  # "rank less than 10", the front being rank 1


def scores(
    study: Study,
    space: Space,
    *,
    search: Callable[..., Iterable[Candidate]],
    windows: Mapping[str, Any] | None = None,
    cost: str = "latency_ms",
    ranks: int = RANKS,
    **options: Any,
) -> dict[tuple[str, Option], float]:
    """p_ij: the share of the selected architectures that take operation i in slot j, in [0, 1].

    search: whatever yields candidates, given the study, the space, ``windows``, ``cost`` and ``options``; the paper's
    is ``hnas.strategies.evolution.search``. Selected are those inside every window in the first ``ranks`` ranks of
    accuracy against ``cost``. Of a slot that may be absent, those count that have it; where none has, its operations
    have no score.
    """
    names = shrinking.scored(study, space)
    found = [c for c in search(study, space, windows=windows, cost=cost, **options) if "accuracy" in c.metrics]
    inside = [c for c in found if all(w.excess(c.metrics[name]) == 0 for name, w in (windows or {}).items())]
    if not inside:
        bounds = ", ".join(f"{name} in [{w.low:g}, {w.high:g}]" for name, w in (windows or {}).items())
        raise ValueError(f"no architecture that was searched meets {bounds}; widen the window or search longer")
    good = select(inside, cost, ranks)
    shares: dict[tuple[str, Option], float] = {}
    for name in names:
        having = [c.arch[name] for c in good if name in c.arch]
        shares |= {(name, o): having.count(o) / len(having) for o in space.choices[name].options if having}
    return shares


def select(candidates: Sequence[Candidate], cost: str, ranks: int) -> list[Candidate]:
    """The candidates of the first ``ranks`` non-domination ranks; equal metrics have equal rank."""

    def metrics(candidate: Candidate) -> tuple[float, float]:
        return candidate.metrics[cost], candidate.metrics["accuracy"]

    left, chosen = list(candidates), []
    for _ in range(ranks):
        best = {metrics(c) for c in front(left, cost)}
        chosen += [c for c in left if metrics(c) in best]
        left = [c for c in left if metrics(c) not in best]
    return chosen
