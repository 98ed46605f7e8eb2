"""AttentiveNAS' BestUp (Wang et al., CVPR 2021, arXiv 2011.09011): a sandwich that trains the best of several subnets.

For each random path a complexity is drawn from that of random members, then candidates of about that complexity. The
candidate with the lowest loss on the step's images is trained. Complexity is the predicted number of
multiply-accumulates. The paper's tables of conditional probabilities are replaced by drawing until a member fits.
"""

from __future__ import annotations

from random import Random

from hnas.ranges import Count
from hnas.sampling import complexity
from hnas.space import Space
from hnas.training.step import SubnetPath


def pick(
    space: Space, rng: Random, progress: float = 0.0, paths: Count = 2, rivals: Count = 3, banks: Count = 10
) -> tuple[SubnetPath, ...]:
    """Return the largest, which teaches, ``paths`` random paths, and the smallest.

    paths: random paths of a step (2).
    rivals: candidates for each random path (3).
    banks: ranges of complexity (10).
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
