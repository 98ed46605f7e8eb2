"""Rank sum: several kinds of evidence added by rank, because their units differ.

Angle and accuracy together rank the cells of NAS-Bench-201 better than either alone, in the results published with ABS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from hnas.space import Option, Space
from hnas.study import Study

PARTS: Mapping[str, Mapping[str, Any]] = {"angle": {}, "one_shot_accuracy": {}}


def scores(
    study: Study,
    space: Space,
    load: Callable[[str], ModuleType],
    *,
    parts: Mapping[str, Mapping[str, Any]] = PARTS,
) -> dict[tuple[str, Option], float]:
    """Return {(choice, option): sum of the operation's ranks}, 0 being the worst rank.

    load: the loader of evidence by name, ``hnas.shrinking.evidence.load``. A recipe passes it.
    parts: name of an evidence -> its options ("angle" and "one_shot_accuracy").

    Equal scores share the mean of their ranks. An operation that one part does not score has no rank and stays.

    Raises:
        ValueError: ``parts`` is empty, or an evidence is unknown.
    """
    if not parts:
        raise ValueError("parts is empty; name the evidence to sum, such as {'angle': {}, 'chance': {}}")
    found = [load(name).scores(study, space, **options) for name, options in parts.items()]
    keys = [key for key in found[0] if all(key in scores for scores in found)]
    total = sum((_ranks(np.array([scores[key] for key in keys])) for scores in found), np.zeros(len(keys)))
    return {key: float(rank) for key, rank in zip(keys, total, strict=True)}


def _ranks(values: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    ranks: np.ndarray[Any, np.dtype[np.float64]] = (ends - (counts + 1) / 2)[group]
    return ranks
