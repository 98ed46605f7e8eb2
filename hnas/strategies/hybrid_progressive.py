"""Hybrid training V2, types open one after the other: our reconstruction of Shin, Cho and Kim (2024).

The types of a slot are an ordered dimension, as sizes are in progressive shrinking (once-for-all, arXiv 1908.09791,
section 3.3): from the most costly, which comes first, to the cheapest. Training runs through equal phases.

1. Phase 0 trains M alone: the most costly type everywhere, at its largest.
2. Phase 1 opens the sizes of those types; each later phase the next type of every slot. Every step is then a sandwich:
   M teaches, members that exclude each other's types among the opened ones, and one at its smallest.

M is one path, so the teacher costs a fraction of the union's. A branch of a residual slot starts with zero output, so a
type enters as the identity and disturbs nothing that was learned. With ``imitate`` it first learns layer by layer: in M
with that type in one slot, whose output there approaches M's on the same input.
"""

from __future__ import annotations

from random import Random

from hnas.ranges import Count, Share
from hnas.sampling.draws import DIVIDED, IDENTITY, exclusive, only, relaxed, widest
from hnas.space import Option, Space
from hnas.training.step import SubnetPath


def pick(
    space: Space, rng: Random, progress: float = 0.0, paths: Count = 3, imitate: Share = 0.0
) -> tuple[SubnetPath, ...]:
    """M, which teaches, and what of the phase is open: ``paths`` random members and the smallest.

    imitate: the share of a phase in whose steps the new types of ``paths`` random slots imitate M's there instead.
    """
    if not 0 <= imitate <= 1:
        raise ValueError(f"imitate is {imitate}; it is a share of each phase, from 0 to 1")
    teacher = SubnetPath(space.largest, teaches=True)
    phase, within = divmod(progress * (1 + widest(space)), 1.0)
    phase = int(phase)
    if phase == 0:
        return (teacher,)
    if within < imitate and (fresh := new(space, phase)):
        taken = rng.sample(sorted(fresh), min(paths, len(fresh)))
        swapped = {slot: relaxed(space, space.largest, {slot: (fresh[slot],)}) for slot in taken}
        return (teacher, *(SubnetPath(arch, imitates=slot) for slot, arch in swapped.items()))
    open_ = only(space, opened(space, phase))
    return (teacher, *map(SubnetPath, exclusive(open_, rng, paths)), SubnetPath(open_.smallest))


def opened(space: Space, phase: int) -> dict[str, tuple[Option, ...]]:
    """The types that each slot offers in a phase: its ``phase`` most costly ones, at least one."""
    return {slot: space.choices[f"{slot}.op"].options[-max(1, phase) :] for slot in space.slots}


def new(space: Space, phase: int) -> dict[str, str]:
    """The type with weights of its own that a phase adds to each slot that still has one to add; M's is not new."""
    ordered = {slot: space.choices[f"{slot}.op"].options for slot in space.slots}
    added = {slot: str(options[-phase]) for slot, options in ordered.items() if 1 < phase <= len(options)}
    return {slot: kind for slot, kind in added.items() if kind != IDENTITY and DIVIDED not in kind}
