"""The sandwich rule with in-place distillation (BigNAS, arXiv 2003.11142, section 3.1) over operation types.

Each step trains the largest subnet, the smallest and random ones on the same images. The random paths take different
types in every slot where there are enough (FairNAS' strict fairness, arXiv 1907.01845, within one step), so that no
type waits long for its turn.
"""

from __future__ import annotations

from random import Random

from hnas.space import Arch, Space
from hnas.training import Path


def pick(space: Space, rng: Random, progress: float = 0.0, paths: int = 3) -> tuple[Path, ...]:
    """The largest subnet, which teaches, ``paths`` random ones and the smallest."""
    del progress
    return (Path(space.largest, teaches=True), *map(Path, exclusive(space, rng, paths)), Path(space.smallest))


def exclusive(space: Space, rng: Random, paths: int) -> list[Arch]:
    """``paths`` random members that differ in the type of every slot as far as its options reach."""
    drawn = [space.sample(rng) for _ in range(paths)]
    for name, choice in space.choices.items():
        if name.endswith(".op"):
            order = rng.sample(choice.options, len(choice.options))
            for k, arch in enumerate(drawn):
                if name in arch:
                    drawn[k] = _with_type(space, arch, name, order[k % len(order)], rng)
    return drawn


def _with_type(space: Space, arch: Arch, name: str, option: object, rng: Random) -> Arch:
    fresh = space.sample(rng)
    chosen = {key: fresh.get(key, choice.options[-1]) for key, choice in space.choices.items()}
    for key, choice in space.choices.items():
        if choice.when and choice.when[0] == name:
            chosen[key] = rng.choice(choice.options)
    return space.arch({**chosen, **arch, name: option})
