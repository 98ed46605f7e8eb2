"""ElasticViT's complexity-aware sampling (Tang et al., ICCV 2023, arXiv 2303.09730): no sudden change of size.

Updates of very small and very large subnets contradict each other. So all paths of a step are about equally complex,
and from step to step complexity moves by at most one range of it. The paper walks at random, which is ``moves``; unless
asked, the walk goes up and down evenly (``sweeps`` times there and back), so that every range has its share. A member
is drawn again until it falls into the range (``Complexity.draw``). The external teacher is replaced by the most complex
path of the step. The paper's other half, banks of paths that were good in earlier steps, is left out: a step would hang
on the losses of those before it; ``attentive`` has the best of several within a step.
"""

from __future__ import annotations

from random import Random

from hnas.ranges import Count
from hnas.sampling import complexity
from hnas.space import Space
from hnas.training.step import SubnetPath


def bank_at(progress: float, banks: int, sweeps: int) -> int:
    """The range of a step; neighbours' differ by at most one where a schedule has 2 x ``banks`` x ``sweeps`` steps."""
    place = (progress * sweeps) % 1.0
    height = (2 * place if place < 0.5 else 2 - 2 * place) * banks
    return min(int(round(height, 9)), banks - 1)  # rounding of the share must not jump over a range


def walked(progress: float, banks: int, moves: int) -> int:
    """Where a random walk of ``moves`` over a schedule is: up, down or nowhere each time, between the ends.

    A step knows its place in the schedule alone, so the walk is the same in every run and begins in the middle.
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
    """``paths`` random members of one of ``banks`` ranges of complexity; the most complex teaches the others.

    moves: of a random walk over the whole schedule, at most one a step, in place of ``sweeps``.
    """
    model = complexity.of(space)
    bank = walked(progress, banks, moves) if moves else bank_at(progress, banks, sweeps)
    drawn = sorted((model.draw(rng, bank, banks, space.sample) for _ in range(paths)), key=model, reverse=True)
    return tuple(SubnetPath(arch, teaches=k == 0) for k, arch in enumerate(drawn))
