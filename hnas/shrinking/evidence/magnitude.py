"""Magnitude: the size of an operation's architecture parameter, or else of what scales its output.

Differentiable searches keep the operation with the largest parameter (DARTS, arXiv 1806.09055). Without one, the
weights of the layer ``out`` in which every operation ends stand for it, as scales of norms do in network slimming
(arXiv 1708.06519).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hnas.sampling import draws as paths
from hnas.shrinking import angles
from hnas.shrinking import loop as shrinking
from hnas.space import Option, Space
from hnas.study import Study


def scores(
    study: Study, space: Space, *, logits: Mapping[str, Tensor] | None = None, standardised: bool = False
) -> dict[tuple[str, Option], float]:
    """The worth of every operation.

    1. with ``logits`` (slot -> one for each of its ``hnas.sampling.draws.types``): the softmax of a slot's. A divided
       option has none, therefore no score, and so stays.
    2. without: the root mean square of the weights of ``out``, of all its weights where none is called so. An operation
       without weights has no score, and so stays.

    standardised: 2., less the mean over all slots of its type, in deviations: for types that end in layers of different
    kinds. Then an operation without weights scores 0.
    """
    found: dict[tuple[str, Option], float] = {}
    weights = study.snapshot() if logits is None else {}
    for name in shrinking.scored(study, space):
        slot, options = name.removesuffix(".op"), space.choices[name].options
        if logits is not None:
            worth = paths.alpha(space, slot, logits).detach().double().softmax(0)
            found |= {(name, kind): float(w) for kind, w in zip(paths.types(space, slot), worth, strict=True)}
            continue
        for option in options:
            found[name, option] = _size({n: w for n, w in weights.items() if n.startswith(f"{slot}.{option}.")})
    if logits is None and standardised:
        return angles.standardise(found)
    return {key: value for key, value in found.items() if value == value}


def _size(weights: Mapping[str, Tensor]) -> float:
    """Root mean square; NaN where there are no weights."""
    outer = [w for name, w in weights.items() if name.endswith(".out.weight")]
    flat = [w.double().flatten() for w in outer or weights.values()]
    return float(torch.cat(flat).square().mean().sqrt()) if flat else float("nan")
