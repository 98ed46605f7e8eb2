"""AttentiveNAS' BestUp (Wang et al., CVPR 2021, arXiv 2011.09011): the random subnets of a sandwich have to earn it.

For each of them a complexity is drawn from that of random members, then some candidates of about that complexity; the
one with the lowest loss on the step's images is trained. Complexity is the predicted count of multiply-accumulates; the
paper's tables of conditional probabilities are replaced by drawing until one fits.
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
    """The largest, which teaches; ``paths`` times the best of ``rivals`` members of one of ``banks`` ranges of
    complexity; the smallest.
    """
    del progress
    if rivals < 1:
        raise ValueError(f"rivals is {rivals}; a path has at least one candidate")
    model, drawn = complexity.of(space), []
    for _ in range(paths):
        bank = model.bank(space.sample(rng), banks)
        first, *others = (model.draw(rng, bank, banks, space.sample) for _ in range(rivals))
        drawn.append(SubnetPath(first, rivals=tuple(others)))
    return (SubnetPath(space.largest, teaches=True), *drawn, SubnetPath(space.smallest))
