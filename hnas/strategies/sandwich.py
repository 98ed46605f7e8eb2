"""The sandwich rule with in-place distillation (BigNAS, arXiv 2003.11142, section 3.1) over operation types.

Each step trains the largest subnet, the smallest and random ones on the same images. The random paths take different
types in every slot that has enough of them (strict fairness of FairNAS, arXiv 1907.01845, within one step). So every
type is trained often.
"""

from __future__ import annotations

from random import Random

from hnas.ranges import NonNegative, Paths, Share
from hnas.sampling.draws import draw_exclusive
from hnas.space import Space
from hnas.training.step import SubnetPath


def pick(
    space: Space,
    rng: Random,
    progress: float = 0.0,
    paths: Paths = 3,
    first: Share = 0.0,
    features: NonNegative = 0.0,
) -> tuple[SubnetPath, ...]:
    """Return the largest subnet as teacher, ``paths`` random subnets (3), and the smallest subnet.

    first: share of the training at whose start only the largest subnet is trained (0). A network that begins with
        pretrained weights is so fine-tuned before it teaches.
    features: factor of the distance of a student's stage outputs from those of the teacher, in the loss (0).
    """
    if progress < first:
        return (SubnetPath(space.largest),)
    return (
        SubnetPath(space.largest, teaches=True),
        *(SubnetPath(arch, features=features) for arch in (*draw_exclusive(space, rng, paths), space.smallest)),
    )
