"""Hybrid training V1, the union teaches: our reconstruction of Shin, Cho and Kim (2024), whose text gives no algorithm.

One-time training by slices needs a network that contains every subnet. With several types in a slot no member contains
all of them, so the teacher M is no member: all types of every slot at their largest, averaged. Every subnet is part of
M, M is an ensemble of subnets, and every branch is trained in every step.
"""

from __future__ import annotations

from random import Random

from hnas.ranges import Count
from hnas.sampling.draws import draw_exclusive, even_gates, most_types, relax, slot_types, take_smallest
from hnas.space import Space
from hnas.training.step import SubnetPath


def pick(space: Space, rng: Random, progress: float = 0.0, paths: Count | None = None) -> tuple[SubnetPath, ...]:
    """Return the teacher M, ``paths`` members that exclude each other's types, and one of random types at its smallest.

    paths: members of a step; None: the number of types of the slot with the most types.

    The losses of the subnets are averaged, so that together they weigh as much as M.
    """
    del progress
    union = relax(space, space.largest, {slot: slot_types(space, slot) for slot in space.slots})
    subnets = draw_exclusive(space, rng, most_types(space) if paths is None else paths)
    subnets += draw_exclusive(space, rng, 1, size=take_smallest)
    students = [SubnetPath(arch, weight=1 / len(subnets)) for arch in subnets]
    return (SubnetPath(union, even_gates(space, union), teaches=True), *students)
