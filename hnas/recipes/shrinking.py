"""The [shrink] section of a recipe in a run: ``shrink_space(study, shrink, ...)`` trains and drops in stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from inspect import signature
from typing import Any

from torch import nn

from hnas import hw_profiles, strategies
from hnas.cost import Cost, Price
from hnas.cost.flops import macs
from hnas.cost.roofline import roofline
from hnas.recipes.sections import ShrinkByEvidence, ShrinkByMethod
from hnas.shrinking import evidence
from hnas.shrinking import loop as shrinking
from hnas.shrinking.edits import Edit
from hnas.shrinking.loop import StageTraining
from hnas.space import Arch, Space
from hnas.study import Study
from hnas.supernet import Supernet


def shrink_space(
    study: Study,
    shrink: ShrinkByEvidence | ShrinkByMethod,
    training: StageTraining,
    identity: Mapping[str, Any],
    log: list[Edit],
) -> Space:
    """Return the space that a recipe's [shrink] leaves: by a published method, or by one evidence."""
    space = study.supernet.space
    if isinstance(shrink, ShrinkByEvidence):
        own = _evidence_options(shrink.evidence, shrink.options, study.seed, training.extra)
        scores = partial(evidence.load(shrink.evidence).scores, **own)
        key = {"seed": study.seed, "shrink": identity["recipe"]["shrink"]}
        return shrinking.run_stages(study, space, scores, training, shrink.rules, key=key, log=log)
    options = shrink.options
    if hasattr(options, "cost"):
        study.costs = predicted_costs(study.supernet, shrink.device)
        options = replace(options, cost=next(iter(study.costs)))
    left: Space = strategies.load(shrink.method).shrink(study, space, options, training=training, log=log)
    return left


def _evidence_options(
    kind: str, options: Mapping[str, Any], seed: int, extra: Mapping[str, nn.Parameter]
) -> dict[str, Any]:
    """Return the arguments of an evidence, and of each of its parts.

    1. The options that the recipe gives.
    2. The run's seed, unless the recipe gives one.
    3. The strategy's logits; the mapping itself, as it follows the space.
    """
    takes = signature(evidence.load(kind).scores).parameters
    offered = {"seed": seed, **({"logits": extra} if extra else {})}
    given = {key: value for key, value in offered.items() if key in takes} | dict(options)
    if "parts" in takes:
        parts = options.get("parts", takes["parts"].default)
        given["parts"] = {part: _evidence_options(part, own, seed, extra) for part, own in parts.items()}
    return given


def predicted_costs(supernet: Supernet, device: str | None) -> dict[str, Cost]:
    """Return the cost of a method that searches: latency predicted for ``device``, or else multiply-accumulates."""

    def counted(arch: Arch) -> Price:
        value = float(macs(supernet.skeleton(arch), *supernet.space.example(arch)))
        return Price(value, "MACs", value, value, "predicted")

    if device is None:
        return {"macs": counted}
    return {"latency_ms": roofline(supernet.space, supernet.skeleton, hw_profiles.load(device), "fp32")}
