"""One-shot accuracy: an operation scores the mean accuracy, with inherited weights, of subnets that contain it.

Single path one-shot search (arXiv 1904.00420) ranks architectures by this accuracy; this file ranks operations. Batch
norms are recalibrated for each subnet: without recalibration the ranking is close to chance.
"""

from __future__ import annotations

from random import Random
from typing import Literal

import numpy as np

from hnas.ranges import Count, PositiveInt
from hnas.sampling import draws as paths
from hnas.shrinking.loop import scored_choices
from hnas.space import Option, Space
from hnas.study import Study


def scores(
    study: Study,
    space: Space,
    *,
    samples: PositiveInt = 8,
    split: Literal["search", "calibration"] = "search",
    seed: Count = 0,
) -> dict[tuple[str, Option], float]:
    """Return {(choice, option): mean accuracy in [0, 1]}.

    samples: number of draws (8). A draw is a set of subnets that differ in the type of every slot and together contain
        every operation.
    split: the images, "search" (default) or "calibration". Test images are not allowed, because the scores decide.
    seed: of the draws (0).
    """
    names = scored_choices(study, space)
    found: dict[tuple[str, Option], list[float]] = {}
    for k in range(samples):
        for arch in paths.draw_exclusive(space, Random(f"{seed}/{k}"), paths.most_types(space)):
            accuracy = study.accuracy(arch, split)
            for name in names:
                if name in arch:
                    found.setdefault((name, arch[name]), []).append(accuracy)
    return {key: float(np.mean(values)) for key, values in found.items()}
