"""Hybrid training V2, types open one after the other: our reconstruction of Shin, Cho and Kim (2024).

The types of a slot are an ordered dimension, as sizes are in progressive shrinking (once-for-all, arXiv 1908.09791,
section 3.3): from the most costly, which comes first, to the cheapest. Training runs through equal phases.

1. Phase 0 trains M alone: the most costly type everywhere, at its largest.
2. Phase 1 opens the sizes of those types; each later phase the next type of every slot. Every step is then a sandwich:
   M teaches, members that exclude each other's types among the opened ones, and one at its smallest.

M is one path, so the teacher costs a fraction of the union's. A branch of a residual slot starts with zero output, so a
type enters as the identity and disturbs nothing that was learned. The layer-wise distillation of a new branch from the
best one at its place is left out (a step sees outputs of networks, not of slots); M's answers take its place.
"""

from __future__ import annotations

from random import Random

from hnas.paths import exclusive, only, widest
from hnas.space import Option, Space
from hnas.training import Path


def pick(space: Space, rng: Random, progress: float = 0.0, paths: int = 3) -> tuple[Path, ...]:
    """M, which teaches, and what of the phase is open: ``paths`` random members and the smallest."""
    teacher = Path(space.largest, teaches=True)
    phase = int(progress * (1 + widest(space)))
    if phase == 0:
        return (teacher,)
    open_ = only(space, opened(space, phase))
    return (teacher, *map(Path, exclusive(open_, rng, paths)), Path(open_.smallest))


def opened(space: Space, phase: int) -> dict[str, tuple[Option, ...]]:
    """The types that each slot offers in a phase: its ``phase`` most costly ones, at least one."""
    return {slot: space.choices[f"{slot}.op"].options[-max(1, phase) :] for slot in space.slots}
