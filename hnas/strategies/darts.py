"""DARTS, first order (Liu, Simonyan and Yang, ICLR 2019, arXiv 1806.09055): a mixture of all types, learned weights.

1. Weights: one path with all types of every slot, weighted by softmax(alpha), on training images.
2. Alpha: the same mixture on images of their own (the split "alpha"), with frozen weights.

At the end every slot takes its most likely type (``hnas.sampling.derive``), and the network is trained alone. The
second order of the paper costs four times as much, and is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

import torch
from torch import Tensor, nn

from hnas.ranges import Limit, NonNegative, Share
from hnas.sampling.draws import branch_gates, draw_every, logits_of, new_logits, relax, slot_types
from hnas.sampling.expected import CostTable, latencies, penalty
from hnas.space import Space
from hnas.training.step import SubnetPath

__all__ = ("SPLIT", "extra", "latencies", "mixture", "pick")

SPLIT = "alpha"  # the images that train the architecture parameters


def extra(space: Space) -> dict[str, nn.Parameter]:
    """Return the logits alpha of every slot's types."""
    return new_logits(space)


def pick(
    space: Space,
    rng: Random,
    progress: float = 0.0,
    extra: Mapping[str, Tensor] | None = None,
    latency: CostTable | None = None,
    limit: Limit | None = None,
    weight: NonNegative = 0.1,
    warmup: Share = 0.1,
) -> tuple[SubnetPath, ...]:
    """Return the mixture that trains the weights and, after the warm-up, the mixture that trains alpha.

    extra: the logits alpha, from ``extra(space)``; None: equal shares, and no path trains alpha.
    latency: costs of the types, from ``latencies(study, space)``; None: no cost in the loss. A recipe names a device.
    limit: the expected cost may reach this limit, in the unit of the cost; (low, high): it may be in this window; None:
        the whole cost is in the loss.
    weight: factor of the cost in the loss (0.1).
    warmup: share of the schedule in which only weights are trained (0.1).
    """
    shares = {slot: torch.softmax(logits_of(space, slot, extra), 0) for slot in space.slots}
    trained = mixture(space, rng, {slot: share.detach() for slot, share in shares.items()})
    cost = penalty(space, latency, extra, weight, limit)  # in the warm-up too, which refuses a wrong table at once
    if extra is None or progress < warmup or trained.gates is None:
        return (trained,)
    searched = mixture(space, rng, shares)
    return trained, SubnetPath(searched.arch, searched.gates, penalty=cost, split=SPLIT)


def mixture(space: Space, rng: Random, shares: Mapping[str, Tensor]) -> SubnetPath:
    """Return a path with all types of every slot at random sizes, weighted by ``shares``: slot -> [types]."""
    whole = relax(space, draw_every(space, rng), {slot: slot_types(space, slot) for slot in space.slots})
    gates = branch_gates(space, whole, shares)
    return SubnetPath(whole, gates or None)
