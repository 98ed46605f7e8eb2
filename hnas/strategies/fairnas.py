"""Strict fairness (FairNAS, Chu et al., ICCV 2021, arXiv 1907.01845): every step trains every type of a slot alike.

As many paths as the slot with the most types has; in each slot they take all of them, by a random permutation, and
their gradients add up to one update. The paper's slots all have as many types; here one with fewer repeats some, so
that the counts of a step differ by at most one, and which types repeat is random.
"""

from __future__ import annotations

from random import Random

from hnas.sampling.draws import exclusive, uniform, widest
from hnas.space import Choice, Option, Space
from hnas.training.step import SubnetPath


def pick(space: Space, rng: Random, progress: float = 0.0) -> tuple[SubnetPath, ...]:
    """Paths that take every type of every slot they reach, equally often up to one; the labels alone teach them."""
    del progress
    # What decides which slots there are (depth) is drawn once a step: a slot that some paths miss would be unfair.
    reach = {choice.when[0] for name, choice in space.choices.items() if name.endswith(".op") and choice.when}
    shared = {name: rng.choice(space.choices[name].options) for name in space.choices if name in reach}

    def size(name: str, choice: Choice, rng: Random) -> Option:
        return shared[name] if name in shared else uniform(name, choice, rng)

    return tuple(map(SubnetPath, exclusive(space, rng, widest(space), size=size)))
