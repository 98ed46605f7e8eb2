"""ProxylessNAS (Cai, Zhu and Han, ICLR 2019, arXiv 1812.00332): binary gates over two sampled paths a slot.

In every slot two types are drawn by softmax(alpha), one of the two is open and the other shut. The forward pass is that
of the open ones alone; dL/dg of both gates, which needs the outputs of both, gives alpha its gradient (equation 4 with
the softmax of the two, section 3.2.1). Here one pass on the training images moves weights and alpha; the paper
alternates, moves alpha by the validation images and rescales the two alphas so that the other probabilities stay as
they were: these are left out. The expected latency in the loss (equations 5 and 6, section 3.3) is an option.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

import torch
from torch import Tensor, nn

from hnas.paths import alpha, alphas, gates, order, relaxed, types, uniform
from hnas.space import Space
from hnas.study import Study
from hnas.training import Path


def extra(space: Space) -> dict[str, nn.Parameter]:
    """The logits alpha of every slot's types."""
    return alphas(space)


def latencies(study: Study, space: Space, metric: str = "latency_ms") -> dict[str, list[float]]:
    """For every slot what each of its types adds to ``metric`` of the largest member, the cheapest there adding 0."""
    table = {}
    for slot in space.slots:
        members = [relaxed(space, space.largest, {slot: (kind,)}) for kind in types(space, slot)]
        prices = [study.price(member, metric).value for member in members]
        table[slot] = [price - min(prices) for price in prices]
    return table


def expected(space: Space, latency: Mapping[str, Sequence[float]], extra: Mapping[str, Tensor] | None) -> Tensor:
    """E[latency], the sum over slots and types of softmax(alpha) times the type's latency; gradients reach alpha."""
    total = torch.zeros(())
    for slot in space.slots:
        logits = alpha(space, slot, extra)
        if len(own := latency.get(slot, ())) != len(logits):
            raise ValueError(f"{slot!r} has {len(own)} latencies for {len(logits)} types; make them with latencies()")
        total = total.to(logits.device) + torch.softmax(logits, 0) @ logits.new_tensor(own)
    return total


def pick(
    space: Space,
    rng: Random,
    progress: float = 0.0,
    extra: Mapping[str, Tensor] | None = None,
    latency: Mapping[str, Sequence[float]] | None = None,
    weight: float = 0.1,
) -> tuple[Path, ...]:
    """One path with two types a slot, one of which is open; types are drawn by softmax(``extra``), evenly without.

    latency: what each type of each slot costs, as ``latencies`` says; ``weight`` times its expectation joins the loss.
    """
    del progress
    pairs, weights = {}, {}
    for slot in space.slots:
        known, logits = types(space, slot), alpha(space, slot, extra)
        pairs[slot] = [str(kind) for kind in order(known, rng, logits.tolist())[:2]]
        weights[slot] = _binary(logits, [known.index(kind) for kind in pairs[slot]], rng)
    arch = relaxed(space, {name: uniform(name, choice, rng) for name, choice in space.choices.items()}, pairs)
    penalty = None if latency is None else weight * expected(space, latency, extra)
    return (Path(arch, gates(space, arch, weights), penalty=penalty),)


def _binary(logits: Tensor, pair: list[int], rng: Random) -> Tensor:
    """One gate for each logit: 1 for one of ``pair``, else 0, with the gradient of the pair's probabilities."""
    share = torch.softmax(logits[pair], 0)
    taken = 0 if rng.random() < float(share.detach()[0]) else len(pair) - 1
    value = torch.eye(len(pair), device=logits.device)[taken] + (share - share.detach())
    return torch.zeros_like(logits).index_put((torch.tensor(pair, device=logits.device),), value)
