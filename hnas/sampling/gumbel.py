"""Draw the types of a slot in order by Gumbel-top-k, with weights through which gradients reach the logits.

``ranked = draw_ranked(space, rng, logits)["slot"]; gates = ranked.gates(0, tau=1.0)``.

1. ``log_softmax(logits)`` plus Gumbel noise, sorted, is a draw without replacement by softmax(logits) (arXiv
   1903.06059). The first type is a plain draw, as in GDAS (arXiv 1910.04465).
2. Equal logits give every order the same probability: the strict fairness of FairNAS (arXiv 1907.01845).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from hnas.sampling.draws import logits_of, slot_types
from hnas.space import Space


@dataclass(frozen=True)
class _RankedTypes:
    """Hold the types of a slot in the order in which they were drawn.

    kinds: the types, in the order of their logits.
    logits: [types].
    noise: [types], Gumbel noise.
    order: indices of the types, from the largest key to the smallest.
    """

    kinds: tuple[str, ...]
    logits: Tensor
    noise: Tensor
    order: tuple[int, ...]

    @property
    def keys(self) -> Tensor:
        """Return [types], log-probabilities plus noise, as a graph of its own: each rank has its own backward pass."""
        return torch.log_softmax(self.logits, 0) + self.noise

    def kind(self, rank: int) -> str:
        """Return the type with this rank, from 0. After the last type the order repeats."""
        return self.kinds[self.order[rank % len(self.order)]]

    def gates(self, rank: int, tau: float) -> Tensor:
        """Return [types]: 1 for the type with this rank, 0 for the others.

        The gradient is that of a softmax with temperature ``tau`` over the types that earlier ranks left
        (straight-through estimator).

        Raises:
            ValueError: ``tau`` is not above 0.
        """
        if not tau > 0:
            raise ValueError(f"the temperature tau is {tau}; it is a number above 0")
        rank %= len(self.order)
        left = torch.full_like(self.noise, -math.inf)
        left[list(self.order[rank:])] = 0.0
        soft = torch.softmax((self.keys + left) / tau, 0)
        hard = torch.zeros_like(soft)
        hard[self.order[rank]] = 1.0
        return hard + (soft - soft.detach())


def draw_ranked(space: Space, rng: Random, extra: Mapping[str, Tensor] | None) -> dict[str, _RankedTypes]:
    """Return slot -> its types in an order that is drawn by the softmax of its logits.

    extra: the logits, as ``hnas.sampling.draws.new_logits`` makes them; None: equal logits.

    Raises:
        ValueError: the logits are not those of the space, or not finite.
    """
    found = {}
    for slot in space.slots:
        logits = logits_of(space, slot, extra)
        noise = logits.new_tensor([-math.log(-math.log(rng.uniform(1e-9, 1 - 1e-9))) for _ in range(len(logits))])
        order = tuple(torch.argsort(logits.detach() + noise, descending=True).tolist())
        found[slot] = _RankedTypes(slot_types(space, slot), logits, noise, order)
    return found
