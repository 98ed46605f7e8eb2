"""Single paths first, then hybrid training: many cheap updates, then steps with a teacher. Not a published method.

At equal compute, single paths update more often and are better at first. At equal updates, hybrid steps are better.
"""

from __future__ import annotations

from random import Random

from hnas.ranges import Paths, Share
from hnas.space import Space
from hnas.strategies import hybrid_union, spos
from hnas.training.step import SubnetPath


def pick(
    space: Space, rng: Random, progress: float = 0.0, switch: Share = 2 / 3, paths: Paths | None = None
) -> tuple[SubnetPath, ...]:
    """Return the paths of ``spos`` before the share ``switch`` of the schedule, then those of ``hybrid_union``.

    switch: share of the schedule with single paths (2/3).
    paths: of ``hybrid_union``.
    """
    return spos.pick(space, rng, progress) if progress < switch else hybrid_union.pick(space, rng, progress, paths)
