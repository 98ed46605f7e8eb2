"""ProxylessNAS (Cai, Zhu and Han, ICLR 2019, arXiv 1812.00332): binary gates over two sampled paths a slot.

In every slot two types are drawn by softmax(alpha), one of the two is open and the other shut. The forward pass is that
of the open ones alone; dL/dg of both gates, which needs the outputs of both, gives alpha its gradient (equation 4 with
the softmax of the two, section 3.2.1). Here one pass on the training images moves weights and alpha; the paper
alternates, moves alpha by the validation images, rescales the two alphas so that the other probabilities stay as they
were, and adds the expected latency to the loss: these are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

import torch
from torch import Tensor, nn

from hnas.paths import alpha, alphas, gates, order, relaxed, types, uniform
from hnas.space import Space
from hnas.training import Path


def extra(space: Space) -> dict[str, nn.Parameter]:
    """The logits alpha of every slot's types."""
    return alphas(space)


def pick(
    space: Space, rng: Random, progress: float = 0.0, extra: Mapping[str, Tensor] | None = None
) -> tuple[Path, ...]:
    """One path with two types a slot, one of which is open; types are drawn by softmax(``extra``), evenly without."""
    del progress
    pairs, weights = {}, {}
    for slot in space.slots:
        known, logits = types(space, slot), alpha(space, slot, extra)
        pairs[slot] = [str(kind) for kind in order(known, rng, logits.tolist())[:2]]
        weights[slot] = _binary(logits, [known.index(kind) for kind in pairs[slot]], rng)
    arch = relaxed(space, {name: uniform(name, choice, rng) for name, choice in space.choices.items()}, pairs)
    return (Path(arch, gates(space, arch, weights)),)


def _binary(logits: Tensor, pair: list[int], rng: Random) -> Tensor:
    """One gate for each logit: 1 for one of ``pair``, else 0, with the gradient of the pair's probabilities."""
    share = torch.softmax(logits[pair], 0)
    taken = 0 if rng.random() < float(share.detach()[0]) else len(pair) - 1
    value = torch.eye(len(pair))[taken] + (share - share.detach())
    return torch.zeros(len(logits)).index_put((torch.tensor(pair),), value)
