"""ElasticViT's complexity-aware sampling (Tang et al., ICCV 2023, arXiv 2303.09730): no sudden change of size.

Updates of very small and very large subnets contradict each other. So all paths of a step have about equal complexity,
and the complexity changes by at most one range between two steps. The paper's random walk is the option ``moves``. By
default the complexity goes up and down evenly (``sweeps`` times), so that every range has its share of the steps.

A member is drawn again until it is in the range (``Complexity.draw``). The external teacher is replaced by the most
complex path of the step. The paper's other half, banks of paths that were good in earlier steps, is left out: a step
would depend on earlier losses. ``attentive`` trains the best of several candidates within a step.
"""

from __future__ import annotations

from random import Random

from hnas.ranges import Count
from hnas.sampling import complexity
from hnas.space import Space
from hnas.training.step import SubnetPath


def bank_of_sweep(progress: float, banks: int, sweeps: int) -> int:
    """Return the range of a step at the share ``progress`` of the schedule.

    The ranges of neighbouring steps differ by at most one if the schedule has 2 x ``banks`` x ``sweeps`` steps.
    """
    place = (progress * sweeps) % 1.0
    height = (2 * place if place < 0.5 else 2 - 2 * place) * banks
    return min(int(round(height, 9)), banks - 1)  # a rounding error of the share must not skip a range


def bank_of_walk(progress: float, banks: int, moves: int) -> int:
    """Return the range of a step on a random walk of ``moves`` over the schedule; each goes up, down or stays.

    A step knows only its share of the schedule, so the walk is the same in every run. It begins in the middle.
    """
    rng, bank = Random(moves), banks // 2
    for _ in range(int(round(progress * moves, 9))):
        bank = min(max(bank + rng.choice((-1, 0, 1)), 0), banks - 1)
    return bank


def pick(
    space: Space,
    rng: Random,
    progress: float = 0.0,
    paths: Count = 3,
    banks: Count = 5,
    sweeps: Count = 8,
    moves: Count = 0,
) -> tuple[SubnetPath, ...]:
    """Return ``paths`` random members of one range of complexity; the most complex teaches the others.

    paths: paths of a step (3).
    banks: ranges of complexity (5).
    sweeps: how often the complexity goes up and down over the schedule (8).
    moves: of a random walk over the schedule, in place of ``sweeps``; at most one for each step. 0 (default): none.
    """
    model = complexity.fitted_model(space)
    bank = bank_of_walk(progress, banks, moves) if moves else bank_of_sweep(progress, banks, sweeps)
    drawn = sorted((model.draw(rng, bank, banks, space.sample) for _ in range(paths)), key=model, reverse=True)
    return tuple(SubnetPath(arch, teaches=k == 0) for k, arch in enumerate(drawn))
