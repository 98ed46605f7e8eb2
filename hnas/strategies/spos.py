"""Single path one-shot (Guo et al., ECCV 2020, arXiv 1904.00420): one uniformly random path in each step."""

from __future__ import annotations

from random import Random

from hnas.space import Space
from hnas.training.step import SubnetPath


def pick(space: Space, rng: Random, progress: float = 0.0) -> tuple[SubnetPath, ...]:
    """Return one member, each option drawn uniformly; it learns from the labels alone."""
    del progress
    return (SubnetPath(space.sample(rng)),)
