"""Shrink or grow as the sections [shrink] and [grow] of a recipe say: ``shrink_space(...)``, ``grow_network(...)``."""

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
from hnas.growth.loop import GrowthRules, grow
from hnas.recipes.sections import ShrinkByEvidence, ShrinkByMethod
from hnas.shrinking import evidence
from hnas.shrinking import loop as shrinking
from hnas.shrinking.edits import Edit
from hnas.shrinking.loop import StageTraining
from hnas.space import Arch, Space
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.training.loop import Observer, Schedule


def shrink_space(
    study: Study,
    shrink: ShrinkByEvidence | ShrinkByMethod,
    training: StageTraining,
    identity: Mapping[str, Any],
    log: list[Edit],
) -> Space:
    """Train and drop operations in stages; return the space that is left.

    shrink: the decoded [shrink] section: a published method, or one evidence with rules.
    training: the schedules and the strategy of the stages.
    identity: the identity of the run as JSON.
    log: receives the edits.
    """
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
    """Return the arguments of the evidence ``kind`` and of its parts.

    1. The options that the recipe gives.
    2. The seed of the run, unless the recipe gives a seed.
    3. The logits of the strategy. They are passed as the same mapping, which is updated when the space shrinks.
    4. The loader of evidence, for an evidence that combines others.
    """
    takes = signature(evidence.load(kind).scores).parameters
    offered = {"seed": seed, "load": evidence.load, **({"logits": extra} if extra else {})}  # cases 2, 3, 4
    given = {key: value for key, value in offered.items() if key in takes} | dict(options)  # case 1
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


def grow_network(
    study: Study,
    rules: GrowthRules,
    schedule: Schedule,
    start: Arch | None,
    observer: Observer,
    log: list[dict[str, Any]],
) -> Space:
    """Train and grow as [grow] says; return the space of the grown member. The arguments are those of ``grow``."""
    cost = predicted_costs(study.supernet, rules.device).get("latency_ms")
    price = None if cost is None else lambda arch: cost(arch).value
    return grow(study, rules, schedule, start=start, price=price, observer=observer, log=log)
