"""Hybrid training V1, the union teaches: our reconstruction of Shin, Cho and Kim (2024), whose text gives no algorithm.

Training all subnets at once needs a teacher that contains every subnet. If slots have several types, no member
contains all of them. So the teacher M is not a member: it averages the outputs of all types of a slot, each at its
largest sizes. Every subnet is part of M, and every branch is trained in every step.
"""

from __future__ import annotations

from random import Random

from hnas.ranges import Paths
from hnas.sampling.draws import draw_exclusive, even_gates, most_types, relax, slot_types, take_smallest
from hnas.space import Space
from hnas.training.step import SubnetPath


def pick(space: Space, rng: Random, progress: float = 0.0, paths: Paths | None = None) -> tuple[SubnetPath, ...]:
    """Return the teacher M, ``paths`` members that differ in every type, and one random member of smallest sizes.

    paths: number of members; None: the number of types of the slot with the most types.

    The losses of the members are averaged, so that together they have the same weight as the loss of M.
    """
    del progress
    union = relax(space, space.largest, {slot: slot_types(space, slot) for slot in space.slots})
    subnets = draw_exclusive(space, rng, most_types(space) if paths is None else paths)
    subnets += draw_exclusive(space, rng, 1, size=take_smallest)
    students = [SubnetPath(arch, weight=1 / len(subnets)) for arch in subnets]
    return (SubnetPath(union, even_gates(space, union), teaches=True), *students)
