"""Strict fairness (FairNAS, Chu et al., ICCV 2021, arXiv 1907.01845): every step trains every type of a slot equally.

A step has one path for each type of the slot with the most types. In each slot the paths take all types in random
order, and their gradients add up to one update. In the paper all slots have equally many types. A slot with fewer types
repeats random ones, so that the counts of a step differ by at most one.
"""

from __future__ import annotations

from random import Random

from hnas.sampling.draws import draw_exclusive, draw_uniform, most_types
from hnas.space import Choice, Option, Space
from hnas.training.step import SubnetPath


def pick(space: Space, rng: Random, progress: float = 0.0) -> tuple[SubnetPath, ...]:
    """Return paths that together take every type of every active slot; they learn from the labels alone."""
    del progress
    # Choices that decide which slots exist (depth) are drawn once for a step: a slot that some paths miss is unfair.
    reach = {choice.when[0] for name, choice in space.choices.items() if name.endswith(".op") and choice.when}
    shared = {name: rng.choice(space.choices[name].options) for name in space.choices if name in reach}

    def size(name: str, choice: Choice, rng: Random) -> Option:
        return shared[name] if name in shared else draw_uniform(name, choice, rng)

    return tuple(map(SubnetPath, draw_exclusive(space, rng, most_types(space), size=size)))
