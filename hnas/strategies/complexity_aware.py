"""ElasticViT's complexity-aware sampling (Tang et al., ICCV 2023, arXiv 2303.09730): no sudden change of size.

Updates of very small and very large subnets contradict each other. So all paths of a step are about equally complex,
and from step to step complexity moves by at most one range of it. The paper walks at random; a step here knows nothing
but its place in the schedule, so the walk goes up and down evenly (``sweeps`` times there and back). Its external
teacher is replaced by the most complex path of the step.
"""

from __future__ import annotations

from random import Random

from hnas import complexity
from hnas.space import Space
from hnas.training import Path


def bank_at(progress: float, banks: int, sweeps: int) -> int:
    """The range of a step; neighbours' differ by at most one where a schedule has 2 x ``banks`` x ``sweeps`` steps."""
    place = (progress * sweeps) % 1.0
    height = (2 * place if place < 0.5 else 2 - 2 * place) * banks
    return min(int(round(height, 9)), banks - 1)  # rounding of the share must not jump over a range


def pick(
    space: Space, rng: Random, progress: float = 0.0, paths: int = 3, banks: int = 5, sweeps: int = 8
) -> tuple[Path, ...]:
    """``paths`` random members of one of ``banks`` ranges of complexity; the most complex teaches the others."""
    model, bank = complexity.of(space), bank_at(progress, banks, sweeps)
    drawn = sorted((model.draw(rng, bank, banks, space.sample) for _ in range(paths)), key=model, reverse=True)
    return tuple(Path(arch, teaches=k == 0) for k, arch in enumerate(drawn))
