"""A random set of types in every slot of one path: a baseline, after an idea of MixPath (arXiv 2001.05887).

Shin, Cho and Kim (2024) call this inadequate. The outputs of a set are averaged and rescaled to the variance of one
branch. MixPath instead has a batch norm for each number of branches.
"""

from __future__ import annotations

from random import Random

from hnas.ranges import Count
from hnas.sampling.draws import draw_uniform, even_gates, relax, slot_types
from hnas.space import Space
from hnas.training.step import SubnetPath


def pick(space: Space, rng: Random, progress: float = 0.0, most: Count | None = None) -> tuple[SubnetPath, ...]:
    """Return one path whose slots hold random sets of types.

    most: largest number of types in a slot; None: all types. Every number is equally likely, and every set of a number.
    """
    del progress
    sizes = {name: draw_uniform(name, choice, rng) for name, choice in space.choices.items()}
    sets = {}
    for slot in space.slots:
        known = slot_types(space, slot)
        sets[slot] = rng.sample(known, rng.randint(1, min(most or len(known), len(known))))
    arch = relax(space, sizes, sets)
    return (SubnetPath(arch, even_gates(space, arch)),)
