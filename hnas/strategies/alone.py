"""Stand-alone training: a space of one member, its one path a step. The yardstick of every weight-sharing method."""

from __future__ import annotations

from random import Random

from hnas.space import Arch, Space


def pick(space: Space, rng: Random) -> tuple[Arch, ...]:
    """The one member; ``rng`` has nothing to decide."""
    del rng
    return (space.largest,)
