"""GDAS (Dong and Yang, CVPR 2019, arXiv 1910.04465): one sampled type in every slot, with a straight-through gradient.

MSG-DAS with one sub-graph, without guidance and without drops (``hnas.strategies.msgdas``). The temperature falls
linearly. The published code starts at 10 and searches for 250 epochs. At 10 the estimator's mean gradient has 12 % of
the length of the exact one, and at 1 it has 81 % (five types, a linear loss, up to 200,000 draws: study E1).
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from torch import Tensor

from hnas.ranges import Falling, Limit, NonNegative, Share
from hnas.sampling.expected import CostTable, latencies
from hnas.space import Space
from hnas.strategies import msgdas
from hnas.strategies.darts import SPLIT, extra
from hnas.training.step import SubnetPath

__all__ = ("SPLIT", "extra", "latencies", "pick")


def pick(
    space: Space,
    rng: Random,
    progress: float = 0.0,
    extra: Mapping[str, Tensor] | None = None,
    latency: CostTable | None = None,
    limit: Limit | None = None,
    weight: NonNegative = 0.1,
    warmup: Share = 0.1,
    tau: Falling = (2.0, 0.1),
) -> tuple[SubnetPath, ...]:
    """Return a sampled path that trains the weights and, after the warm-up, one that trains alpha.

    extra, latency, limit, weight, warmup: as in ``hnas.strategies.darts.pick``.
    tau: temperature at the first and at the last step (2 and 0.1).
    """
    shared = space, rng, progress, extra, latency, limit, weight, warmup
    return msgdas.pick(*shared, paths=1, tau=tau, drop=0.0, guidance=False)
