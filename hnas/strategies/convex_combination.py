"""A softmax-weighted sum of all types in every slot (DARTS' mixture, arXiv 1806.09055): a baseline.

Shin, Cho and Kim (2024) call this inadequate: the weights fit the mixture, and no subnet with one type in each slot is
ever trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

import torch
from torch import Tensor, nn

from hnas.sampling.draws import branch_gates, draw_every, logits_of, new_logits, relax, slot_types
from hnas.space import Space
from hnas.training.step import SubnetPath


def extra(space: Space) -> dict[str, nn.Parameter]:
    """Return the logits of every slot's types."""
    return new_logits(space)


def pick(
    space: Space, rng: Random, progress: float = 0.0, extra: Mapping[str, Tensor] | None = None
) -> tuple[SubnetPath, ...]:
    """Return one path with all types of every slot at random sizes, weighted by softmax(``extra``); None: evenly."""
    del progress
    mixture = relax(space, draw_every(space, rng), {slot: slot_types(space, slot) for slot in space.slots})
    weights = {slot: torch.softmax(logits_of(space, slot, extra), 0) for slot in space.slots}
    return (SubnetPath(mixture, branch_gates(space, mixture, weights)),)
