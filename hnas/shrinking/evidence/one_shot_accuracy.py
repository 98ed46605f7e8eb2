"""One-shot accuracy: an operation is worth the mean accuracy, with inherited weights, of subnets that contain it.

The evidence that single path one-shot searches go by (arXiv 1904.00420), asked for operations. Norms are calibrated for
each subnet: without that the ranking is close to chance.
"""

from __future__ import annotations

from random import Random

import numpy as np

from hnas.sampling import draws as paths
from hnas.shrinking import loop as shrinking
from hnas.space import Option, Space
from hnas.study import Study


def scores(
    study: Study, space: Space, *, samples: int = 8, split: str = "search", seed: int = 0
) -> dict[tuple[str, Option], float]:
    """Mean accuracy on ``split`` over ``samples`` draws of subnets whose types exclude each other.

    Every draw shows every operation, so all are judged by as many subnets, in the same company on average.
    """
    names = shrinking.scored(study, space)
    found: dict[tuple[str, Option], list[float]] = {}
    for k in range(samples):
        for arch in paths.exclusive(space, Random(f"{seed}/{k}"), paths.widest(space)):
            accuracy = study.accuracy(arch, split)
            for name in names:
                if name in arch:
                    found.setdefault((name, arch[name]), []).append(accuracy)
    return {key: float(np.mean(values)) for key, values in found.items()}
