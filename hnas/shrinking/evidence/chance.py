"""Chance: every operation gets a random score. The control that any other evidence has to beat."""

from __future__ import annotations

from random import Random

from hnas.ranges import Count
from hnas.shrinking.loop import scored_choices
from hnas.space import Option, Space
from hnas.study import Study


def scores(study: Study, space: Space, *, seed: Count = 0) -> dict[tuple[str, Option], float]:
    """Return {(choice, option): number in [0, 1)}, which depends on the seed and the operation alone."""
    names = scored_choices(study, space)
    return {(n, o): Random(f"{seed}/{n}/{o}").random() for n in names for o in space.choices[n].options}
