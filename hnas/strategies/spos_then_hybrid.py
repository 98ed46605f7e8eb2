"""Single paths first, hybrid training for the last third: many cheap updates, then a teacher and many paths a step.

Ours. At equal compute single paths update more often and lead early; at equal updates the multi-path step leads.
"""

from __future__ import annotations

from random import Random

from hnas.space import Space
from hnas.strategies import hybrid_union, spos
from hnas.training.step import Path


def pick(
    space: Space, rng: Random, progress: float = 0.0, switch: float = 2 / 3, paths: int | None = None
) -> tuple[Path, ...]:
    """Before the share ``switch`` of the schedule what ``spos`` picks, after it what ``hybrid_union`` does."""
    return spos.pick(space, rng, progress) if progress < switch else hybrid_union.pick(space, rng, progress, paths)
