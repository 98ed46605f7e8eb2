"""Hybrid training V1, the union teaches: our reconstruction of Shin, Cho and Kim (2024), whose text gives no algorithm.

One-time training by slices needs a network that contains every subnet. With several types in a slot no member is that
network, so the teacher M is none: all types of every slot at their largest, averaged. Every subnet is a part of M, M is
an ensemble of them, and every branch is trained at every step.
"""

from __future__ import annotations

from random import Random

from hnas.ranges import Count
from hnas.sampling.draws import even, exclusive, relaxed, smallest, types, widest
from hnas.space import Space
from hnas.training.step import SubnetPath


def pick(space: Space, rng: Random, progress: float = 0.0, paths: Count | None = None) -> tuple[SubnetPath, ...]:
    """M, which teaches; ``paths`` members that exclude each other's types; one of random types at its smallest.

    paths: as many as the slot with the most types has, unless given. The subnets' losses are averaged, so that their
    number does not outweigh M.
    """
    del progress
    union = relaxed(space, space.largest, {slot: types(space, slot) for slot in space.slots})
    subnets = exclusive(space, rng, widest(space) if paths is None else paths)
    subnets += exclusive(space, rng, 1, size=smallest)
    students = [SubnetPath(arch, weight=1 / len(subnets)) for arch in subnets]
    return (SubnetPath(union, even(space, union), teaches=True), *students)
