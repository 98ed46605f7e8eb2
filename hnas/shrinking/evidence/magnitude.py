"""Magnitude: the size of an operation's architecture parameter, or else of the weights of its last layer.

Differentiable searches keep the operation with the largest parameter (DARTS, arXiv 1806.09055). Without one, the
weights of the layer ``out``, in which every operation ends, replace it, as scales of norms do in network slimming
(arXiv 1708.06519).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hnas.sampling import draws as paths
from hnas.shrinking import angles
from hnas.shrinking.loop import scored_choices
from hnas.space import Option, Space
from hnas.study import Study


def scores(
    study: Study, space: Space, *, logits: Mapping[str, Tensor] | None = None, standardised: bool = False
) -> dict[tuple[str, Option], float]:
    """Return {(choice, option): magnitude}.

    logits: slot -> one for each of its ``hnas.sampling.draws.slot_types``; None: weights are measured.
        1. With logits: the softmax of a slot's logits. A divided option has no logit, so it has no score and stays.
        2. Without logits: the root mean square of the weights of the layer ``out``, or of all weights if no layer has
           this name. An operation without weights has no score and stays.
    standardised: case 2 minus the mean over all slots of the type, in standard deviations (False): for types that end
        in different kinds of layers. An operation without weights then scores 0.
    """
    found: dict[tuple[str, Option], float] = {}
    weights = study.snapshot() if logits is None else {}
    for name in scored_choices(study, space):
        slot, options = name.removesuffix(".op"), space.choices[name].options
        if logits is not None:  # case 1
            worth = paths.logits_of(space, slot, logits).detach().double().softmax(0)
            found |= {(name, kind): float(w) for kind, w in zip(paths.slot_types(space, slot), worth, strict=True)}
            continue
        for option in options:  # case 2
            found[name, option] = _size({n: w for n, w in weights.items() if n.startswith(f"{slot}.{option}.")})
    if logits is None and standardised:
        return angles.standardise(found)
    return {key: value for key, value in found.items() if value == value}


def _size(weights: Mapping[str, Tensor]) -> float:
    """Return the root mean square; NaN where there are no weights."""
    outer = [w for name, w in weights.items() if name.endswith(".out.weight")]
    flat = [w.double().flatten() for w in outer or weights.values()]
    return float(torch.cat(flat).square().mean().sqrt()) if flat else float("nan")
