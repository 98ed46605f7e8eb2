"""Stand-alone training: a space of one member, its one path a step. The yardstick of every weight-sharing method."""

from __future__ import annotations

from random import Random

from hnas.space import Space
from hnas.training.step import SubnetPath


def pick(space: Space, rng: Random, progress: float = 0.0) -> tuple[SubnetPath, ...]:
    """The one member; there is nothing to decide."""
    del rng, progress
    return (SubnetPath(space.largest),)
