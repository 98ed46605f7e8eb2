"""Hybrid training V3, divided channels: our reconstruction of Shin, Cho and Kim (2024), after MixConv (1907.09595).

The output channels of a slot are divided among several types: the option "a+b" gives the first half to a and the
second half to b. Each type owns weights for all channels, and uses the slice of its own channels. A member with divided
slots can be deployed. The space must offer such options: ``hybrid_vision(divisions=("convnext+mbconv",))``.
"""

from __future__ import annotations

from random import Random

from hnas.ranges import Paths
from hnas.sampling.draws import DIVIDED, draw_exclusive, keep_types, slot_types
from hnas.space import Space
from hnas.training.step import SubnetPath


def pick(space: Space, rng: Random, progress: float = 0.0, paths: Paths = 3) -> tuple[SubnetPath, ...]:
    """Return the largest member as teacher, ``paths`` undivided members, one divided member, and the smallest member.

    paths: number of undivided members (3). They differ in the type of every slot.

    The divided member is divided in every slot that offers a divided type.

    Raises:
        ValueError: no slot of the space offers a divided type.
    """
    del progress
    options = {slot: space.choices[f"{slot}.op"].options for slot in space.slots}
    divided = {slot: tuple(o for o in offered if DIVIDED in str(o)) for slot, offered in options.items()}
    if not any(divided.values()):
        raise ValueError(
            f"no slot of the space {space.name!r} has channels to divide; offer it types such as 'convnext+mbconv'"
        )
    corners = keep_types(space, {slot: slot_types(space, slot) for slot in space.slots})
    mixed = keep_types(space, {slot: offered for slot, offered in divided.items() if offered})
    return (
        SubnetPath(space.largest, teaches=True),
        *map(SubnetPath, draw_exclusive(corners, rng, paths)),
        *map(SubnetPath, draw_exclusive(mixed, rng, 1)),
        SubnetPath(space.smallest),
    )
