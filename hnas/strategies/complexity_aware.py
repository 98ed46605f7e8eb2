"""ElasticViT's complexity-aware sampling (Tang et al., ICCV 2023, arXiv 2303.09730): no sudden change of size.

Updates of very small and very large subnets contradict each other. So all paths of a step have about equal complexity,
and the complexity changes by at most one range between two steps. The option ``moves`` is the random walk of the paper.
By default the complexity goes up and down evenly (``sweeps`` times), so that all ranges get equally many steps.

A member is drawn again until it is inside the range. The teacher is the most complex path of the step; the paper has an
external teacher. The paper also keeps banks of paths that were good in earlier steps. They are left out, because a step
would then depend on earlier losses. ``attentive`` trains the best of several candidates within a step.
"""

from __future__ import annotations

from random import Random

from hnas.ranges import Count, Paths
from hnas.sampling import complexity
from hnas.space import Space
from hnas.training.step import SubnetPath


def bank_of_sweep(progress: float, banks: int, sweeps: int) -> int:
    """Return the number of the complexity range at the share ``progress`` of the schedule.

    The ranges of neighbouring steps differ by at most one if the schedule has 2 x ``banks`` x ``sweeps`` steps.
    """
    place = (progress * sweeps) % 1.0
    height = (2 * place if place < 0.5 else 2 - 2 * place) * banks
    return min(int(round(height, 9)), banks - 1)  # a rounding error of the share must not skip a range


def bank_of_walk(progress: float, banks: int, moves: int) -> int:
    """Return the number of the complexity range at the share ``progress`` of a schedule with a random walk.

    The walk has ``moves`` moves and begins in the middle range. Each move goes up, goes down or stays. ``moves`` is
    also the seed, so that the walk is the same in every step and run.
    """
    rng, bank = Random(moves), banks // 2
    for _ in range(int(round(progress * moves, 9))):
        bank = min(max(bank + rng.choice((-1, 0, 1)), 0), banks - 1)
    return bank


def pick(
    space: Space,
    rng: Random,
    progress: float = 0.0,
    paths: Paths = 3,
    banks: Count = 5,
    sweeps: Count = 8,
    moves: Count = 0,
) -> tuple[SubnetPath, ...]:
    """Return ``paths`` random members of one complexity range; the most complex member is the teacher.

    paths: number of paths in a step (3).
    banks: number of complexity ranges (5).
    sweeps: how often the complexity goes up and down over the schedule (8).
    moves: number of moves of a random walk over the schedule, which replaces ``sweeps``; at most one for each step.
        0 (default): no random walk.
    """
    model = complexity.fitted_model(space)
    bank = bank_of_walk(progress, banks, moves) if moves else bank_of_sweep(progress, banks, sweeps)
    drawn = sorted((model.draw(rng, bank, banks, space.sample) for _ in range(paths)), key=model, reverse=True)
    return tuple(SubnetPath(arch, teaches=k == 0) for k, arch in enumerate(drawn))
