"""ProxylessNAS (Cai, Zhu and Han, ICLR 2019, arXiv 1812.00332): train weights and architecture parameters in turn.

A step updates first the weights, then the architecture parameters alpha.

1. Weights: one path on training images; its types are drawn by softmax(alpha).
2. Alpha: two types are drawn in every slot, and the other types are ignored. The gate of one type is 1 and the gate of
   the other is 0, so the output is that of one type. The gradients of both gates need the outputs of both types; they
   give the gradients of the two alphas (equation 4 with the softmax of the two). Weights are frozen, and the images are
   held out from the training of weights. Afterwards the two alphas are shifted so that the other types keep their
   probabilities (section 3.2). The expected latency in the loss (equations 5 and 6, section 3.3) is an option.

The held-out images are the calibration images; the paper holds out 5,000 to 50,000 images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

import torch
from torch import Tensor, nn

from hnas.ranges import Limit, NonNegative, Share
from hnas.sampling.draws import branch_gates, draw_every, draw_order, logits_of, new_logits, relax, slot_types
from hnas.sampling.expected import CostTable, latencies, penalty
from hnas.space import Arch, Space
from hnas.training.step import SubnetPath

__all__ = ("extra", "latencies", "pick")


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
    warmup: Share = 0.25,
) -> tuple[SubnetPath, ...]:
    """Return a path that trains the weights and, after the warm-up, one that trains alpha.

    extra: the logits alpha, from ``extra(space)``; None: types are drawn evenly, and no path trains alpha.
    latency, limit, weight: as in ``hnas.strategies.darts.pick``. The gradient is that of the two drawn types.
    warmup: share of the schedule in which only weights are trained (0.25).
    """
    logits = {slot: logits_of(space, slot, extra) for slot in space.slots}
    # Case 1.
    trained = SubnetPath(_sized(space, rng, {slot: _drawn(space, slot, logits[slot], rng)[:1] for slot in space.slots}))
    # Case 2.
    pairs = {slot: _drawn(space, slot, logits[slot], rng)[:2] for slot in space.slots}
    among = {
        slot: [slot_types(space, slot).index(kind) for kind in pair] for slot, pair in pairs.items() if len(pair) == 2
    }
    cost = penalty(
        space, latency, extra, weight, limit, among
    )  # in the warm-up too, which refuses a wrong table at once
    if extra is None or progress < warmup or not among:
        return (trained,)
    arch = _sized(space, rng, pairs)
    weights = {slot: _binary(logits[slot], pair, rng) for slot, pair in among.items()}
    return trained, SubnetPath(arch, branch_gates(space, arch, weights), penalty=cost, split="calibration", moves=among)


def _drawn(space: Space, slot: str, logits: Tensor, rng: Random) -> list[str]:
    """Return all types of a slot, drawn one by one without replacement by softmax(``logits``)."""
    return [str(kind) for kind in draw_order(slot_types(space, slot), rng, logits.tolist())]


def _sized(space: Space, rng: Random, taken: Mapping[str, Sequence[str]]) -> Arch:
    """Return an arch with the types ``taken`` in its slots and random sizes."""
    return relax(space, draw_every(space, rng), taken)


def _binary(logits: Tensor, pair: list[int], rng: Random) -> Tensor:
    """Return a gate for each logit: 1 for one of ``pair``, else 0, with the gradient of the pair's probabilities."""
    share = torch.softmax(logits[pair], 0)
    taken = 0 if rng.random() < float(share.detach()[0]) else 1
    value = torch.eye(2, device=logits.device)[taken] + (share - share.detach())
    return torch.zeros_like(logits).index_put((torch.tensor(pair, device=logits.device),), value)
