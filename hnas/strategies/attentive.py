"""AttentiveNAS' BestUp (Wang et al., CVPR 2021, arXiv 2011.09011): a sandwich that trains the best of several subnets.

Complexity is the predicted number of multiply-accumulates. For each random path, a random member gives the complexity,
and candidates of about this complexity are drawn. The candidate with the lowest loss on the step's images is trained.
The paper has tables of conditional probabilities; here members are drawn until one has the complexity.
"""

from __future__ import annotations

from random import Random

from hnas.ranges import Count, Paths
from hnas.sampling import complexity
from hnas.space import Space
from hnas.training.step import SubnetPath


def pick(
    space: Space, rng: Random, progress: float = 0.0, paths: Paths = 2, rivals: Paths = 3, banks: Count = 10
) -> tuple[SubnetPath, ...]:
    """Return the largest member as teacher, ``paths`` random paths, and the smallest member.

    paths: number of random paths in a step (2).
    rivals: number of candidates for each random path (3).
    banks: number of complexity ranges (10).

    Raises:
        ValueError: ``rivals`` is 0.
    """
    del progress
    if rivals < 1:
        raise ValueError(f"rivals is {rivals}; a path has at least one candidate")
    model, drawn = complexity.fitted_model(space), []
    for _ in range(paths):
        bank = model.bank(space.sample(rng), banks)
        first, *others = (model.draw(rng, bank, banks, space.sample) for _ in range(rivals))
        drawn.append(SubnetPath(first, rivals=tuple(others)))
    return (SubnetPath(space.largest, teaches=True), *drawn, SubnetPath(space.smallest))
