"""Stand-alone training of a space with one member: the reference for every weight-sharing method."""

from __future__ import annotations

from random import Random

from hnas.space import Space
from hnas.training.step import SubnetPath


def pick(space: Space, rng: Random, progress: float = 0.0) -> tuple[SubnetPath, ...]:
    """Return one path: the only member of the space."""
    del rng, progress
    return (SubnetPath(space.largest),)
