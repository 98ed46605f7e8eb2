"""Hybrid training V2, types are added one after the other: our reconstruction of Shin, Cho and Kim (2024).

The types of a slot are an ordered dimension, as sizes are in progressive shrinking (once-for-all, arXiv 1908.09791,
section 3.3): from the most costly, which is first, to the cheapest. Training has equal phases.

1. Phase 0 trains the teacher M alone: the most costly type everywhere, at its largest.
2. Phase 1 adds the sizes of these types. Each later phase adds the next type of every slot. Every step is then a
   sandwich: M, members with different types in every slot (from the types added so far), and the smallest member.

M is one path, so this teacher costs a fraction of the union. A branch of a residual slot starts with zero output, so a
new type starts as the identity and changes no trained subnet. With ``imitate``, a new type is first distilled layer by
layer: it replaces the type of one slot of M, and its output is trained towards M's output on the same input.
"""

from __future__ import annotations

from random import Random

from hnas.ranges import Paths, Share
from hnas.sampling.draws import DIVIDED, IDENTITY, draw_exclusive, keep_types, most_types, relax
from hnas.space import Option, Space
from hnas.training.step import SubnetPath


def pick(
    space: Space, rng: Random, progress: float = 0.0, paths: Paths = 3, imitate: Share = 0.0
) -> tuple[SubnetPath, ...]:
    """Return the teacher M, ``paths`` random members of the current phase, and the smallest.

    paths: number of random members in a step (3).
    imitate: share of each phase in which the step instead trains the new types of ``paths`` random slots to imitate
        the types of M (0).

    Raises:
        ValueError: ``imitate`` is not in [0, 1].
    """
    if not 0 <= imitate <= 1:
        raise ValueError(f"imitate is {imitate}; it is a share of each phase, from 0 to 1")
    teacher = SubnetPath(space.largest, teaches=True)
    phase, within = divmod(progress * (1 + most_types(space)), 1.0)
    phase = int(phase)
    if phase == 0:  # case 1
        return (teacher,)
    if within < imitate and (fresh := new_types(space, phase)):
        taken = rng.sample(sorted(fresh), min(paths, len(fresh)))
        swapped = {slot: relax(space, space.largest, {slot: (fresh[slot],)}) for slot in taken}
        return (teacher, *(SubnetPath(arch, imitates=slot) for slot, arch in swapped.items()))
    open_ = keep_types(space, opened_types(space, phase))  # case 2
    return (teacher, *map(SubnetPath, draw_exclusive(open_, rng, paths)), SubnetPath(open_.smallest))


def opened_types(space: Space, phase: int) -> dict[str, tuple[Option, ...]]:
    """Return the types that each slot offers in a phase: the ``phase`` most costly types, at least one type."""
    return {slot: space.choices[f"{slot}.op"].options[-max(1, phase) :] for slot in space.slots}


def new_types(space: Space, phase: int) -> dict[str, str]:
    """Return slot -> the type that a phase adds to the slot.

    Left out are slots without a new type, and new types without weights of their own (identity and divided types).
    """
    ordered = {slot: space.choices[f"{slot}.op"].options for slot in space.slots}
    added = {slot: str(options[-phase]) for slot, options in ordered.items() if 1 < phase <= len(options)}
    return {slot: kind for slot, kind in added.items() if kind != IDENTITY and DIVIDED not in kind}
