"""MSG-DAS (Tan et al., 2021): mutually exclusive sub-graphs of one Gumbel-TopK draw.

1. Sampler: the types of every slot are drawn in order, without replacement (``hnas.sampling.gumbel``). Sub-graph k
   takes the k-th type of every slot. One sub-graph is GDAS. As many as types, with equal logits, are FairNAS.
2. Weights: the sub-graphs are trained one after another, so that the activations of one path are in memory at a time.
   With ``guidance`` the super-net, a mixture of all types by softmax(alpha), runs without gradients and teaches them.
3. Alpha: a new draw on images of their own (the split "alpha"), with frozen weights. The gradients of all sub-graphs
   add up to one update, so that competing types are compared on the same images.
4. Dropblock-Identity: during the search identity branches drop blocks of their input (``hnas.ops.skip``). The rate
   falls linearly to 0 in the warm-up. Then it starts again at its first value and falls exponentially.

The published figures are unknown to us; sampler and schedule are reconstructed (docs/methods/msgdas.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from random import Random

import torch
from torch import Tensor

from hnas.ops.skip import DropBlock
from hnas.ranges import Falling, Limit, NonNegative, PositiveInt, Share
from hnas.sampling.draws import branch_gates, draw_every, logits_of, relax, slot_types
from hnas.sampling.expected import CostTable, latencies, penalty
from hnas.sampling.gumbel import draw_ranked
from hnas.space import Space
from hnas.strategies import darts
from hnas.strategies.darts import SPLIT, extra
from hnas.training.step import SubnetPath

__all__ = ("EXCLUSIVE", "SPLIT", "drop_rate", "extra", "latencies", "pick")

EXCLUSIVE = "paths"  # the option that says how many types of a slot a step draws without replacement
_FALL = 3.0  # the rate of drops ends at exp(-3) of its value after the warm-up: P-DARTS' exp(-0.2) an epoch, 15 epochs


def pick(
    space: Space,
    rng: Random,
    progress: float = 0.0,
    extra: Mapping[str, Tensor] | None = None,
    latency: CostTable | None = None,
    limit: Limit | None = None,
    weight: NonNegative = 0.1,
    warmup: Share = 0.1,
    paths: PositiveInt = 2,
    tau: Falling = (2.0, 0.1),
    drop: Share = 0.3,
    block: PositiveInt = 7,
    guidance: bool = False,
) -> tuple[SubnetPath, ...]:
    """Return the paths of a step: a teacher if wanted, the sub-graphs that train weights, and those that train alpha.

    extra, latency, limit, weight, warmup: as in ``hnas.strategies.darts.pick``.
    paths: number of sub-graphs, at most the number of types of every slot that has a choice (2).
    tau: temperature at the first and at the last step (2 and 0.1).
    drop: rate of Dropblock-Identity at the first step, below 1; 0 switches it off (0.3).
    block: side of a dropped block; smaller maps have smaller blocks (7).
    guidance: the super-net teaches the sub-graphs, as published (False: study E4 sees no gain beyond the noise).

    Raises:
        ValueError: a slot has fewer types than there are sub-graphs, or an option is out of range.
    """
    counts = {slot: len(slot_types(space, slot)) for slot in space.slots}
    _check_options(paths, tau, counts)
    cost = penalty(space, latency, extra, weight, limit)  # in the warm-up too, which refuses a wrong table at once
    rate = drop_rate(progress, warmup, drop)
    # Drawn even where they are not used: a search without drops or guidance then takes the same paths.
    seed, teaching = rng.getrandbits(32), Random(rng.getrandbits(32))
    blocks = DropBlock(rate, block, seed) if rate else None
    picked: list[SubnetPath] = []
    if guidance:
        shares = {slot: torch.softmax(logits_of(space, slot, extra), 0).detach() for slot in space.slots}
        teacher = darts.mixture(space, teaching, shares)
        picked.append(SubnetPath(teacher.arch, teacher.gates, teaches=True, trains=False))
    ranked = draw_ranked(space, rng, extra)
    for k in range(paths):
        kinds = {slot: (types.kind(k),) for slot, types in ranked.items()}
        picked.append(SubnetPath(relax(space, draw_every(space, rng), kinds), weight=1 / paths, drop=blocks))
    if extra is None or progress < warmup or max(counts.values(), default=1) == 1:
        return tuple(picked)
    now = tau[0] + (tau[1] - tau[0]) * progress
    ranked = draw_ranked(space, rng, extra)
    for k in range(paths):
        kinds = {slot: (types.kind(k),) for slot, types in ranked.items()}
        arch = relax(space, draw_every(space, rng), kinds, single=True)
        gates = branch_gates(space, arch, {slot: types.gates(k, now) for slot, types in ranked.items()})
        own = SubnetPath(arch, gates, weight=1 / paths, penalty=None if k else cost, drop=blocks, split=SPLIT)
        picked.append(own)
    return tuple(picked)


def _check_options(paths: int, tau: tuple[float, float], counts: Mapping[str, int]) -> None:
    """Raise ValueError unless sub-graphs can differ in every slot with a choice and the temperature is above 0.

    counts: slot -> its number of types.
    """
    if not all(0 < each < math.inf for each in tau):
        raise ValueError(f"the temperature tau is {tau}; it is [first, last], numbers above 0")
    open_slots = {slot: count for slot, count in counts.items() if count > 1}
    fewest = min(open_slots, key=lambda slot: open_slots[slot], default=None)
    if fewest is None and paths > 1:
        raise ValueError(f"{paths} exclusive sub-graphs need {paths} types in a slot; every slot of the space has one")
    if fewest is not None and paths > open_slots[fewest]:
        what = f"{paths} exclusive sub-graphs need {paths} types in every slot with a choice"
        raise ValueError(f"{what}; {fewest!r} has {open_slots[fewest]}; give fewer paths")


def drop_rate(progress: float, warmup: float, first: float) -> float:
    """Return the rate of Dropblock-Identity at a share of the schedule.

    first: the rate at the first step. It falls linearly in the warm-up, and restarts from ``first`` with an exponential
        fall after it (P-DARTS, arXiv 1904.12760).
    """
    if progress < warmup:
        return first * (1 - progress / warmup)
    return first * math.exp(-_FALL * (progress - warmup) / (1 - warmup)) if warmup < 1 else 0.0
