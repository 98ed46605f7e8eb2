"""Chance: every operation is worth a random number. The control that any other evidence has to beat."""

from __future__ import annotations

from random import Random

from hnas.shrinking import loop as shrinking
from hnas.space import Option, Space
from hnas.study import Study


def scores(study: Study, space: Space, *, seed: int = 0) -> dict[tuple[str, Option], float]:
    """Numbers in [0, 1) that depend on the seed and the operation alone."""
    names = shrinking.scored(study, space)
    return {(n, o): Random(f"{seed}/{n}/{o}").random() for n in names for o in space.choices[n].options}
