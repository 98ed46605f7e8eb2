"""Pareto frequency (PAD-NAS, arXiv 2005.07564, section 3.3): how often the good architectures take an operation.

One-shot accuracy is noisy, so the first non-domination ranks are counted, not the Pareto front alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from hnas.pareto import Candidate, front
from hnas.shrinking.loop import scored_choices
from hnas.space import Option, Space
from hnas.study import Study

RANKS = 9  # "rank less than 10", the front being rank 1


class _Window(Protocol):
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    def excess(self, value: float) -> float: ...


def scores(
    study: Study,
    space: Space,
    *,
    search: Callable[[Study, Space], Iterable[Candidate]],
    windows: Mapping[str, _Window] | None = None,
    cost: str = "latency_ms",
    ranks: int = RANKS,
) -> dict[tuple[str, Option], float]:
    """Return p_ij, the share of the good architectures that take operation i in slot j, in [0, 1].

    search: yields candidates of a space; the paper's is ``hnas.strategies.evolution.search``.
    windows: metric -> window; good architectures are inside all of them.
    cost: the metric of the trade-off against accuracy ("latency_ms").
    ranks: non-domination ranks that count as good (9).

    For a slot that may be absent, only the architectures with this slot count. If no good architecture has the slot,
    its operations get no score.

    Raises:
        ValueError: no architecture that was searched is inside all windows.
    """
    names = scored_choices(study, space)
    found = [candidate for candidate in search(study, space) if "accuracy" in candidate.metrics]
    good = select(_inside(found, windows or {}), cost, ranks)
    shares: dict[tuple[str, Option], float] = {}
    for name in names:
        having = [c.arch[name] for c in good if name in c.arch]
        shares |= {(name, o): having.count(o) / len(having) for o in space.choices[name].options if having}
    return shares


def select(candidates: Sequence[Candidate], cost: str, ranks: int) -> list[Candidate]:
    """Return the candidates of the first ``ranks`` non-domination ranks; equal metrics have equal rank."""

    def metrics(candidate: Candidate) -> tuple[float, float]:
        return candidate.metrics[cost], candidate.metrics["accuracy"]

    left, chosen = list(candidates), []
    for _ in range(ranks):
        best = {metrics(c) for c in front(left, cost)}
        chosen += [c for c in left if metrics(c) in best]
        left = [c for c in left if metrics(c) not in best]
    return chosen


def _inside(candidates: Sequence[Candidate], windows: Mapping[str, _Window]) -> list[Candidate]:
    inside = [c for c in candidates if all(w.excess(c.metrics[name]) == 0 for name, w in windows.items())]
    if not inside:
        bounds = ", ".join(f"{name} in [{w.low:g}, {w.high:g}]" for name, w in windows.items())
        raise ValueError(f"no architecture that was searched meets {bounds}; widen the window or search longer")
    return inside
