"""D3, D4: the effect of shrinking and of less sharing on the searches that run afterwards (ABS, PWSNAS).

ABS is arXiv 2004.13431; PWSNAS is DOI 10.1109/TNNLS.2022.3156373.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from hnas.benchmarks.papers import tabular, truth
from hnas.benchmarks.papers.claims import Claim, StudyPlan
from hnas.benchmarks.papers.data import StudyData
from hnas.benchmarks.papers.parts import Result, StudyPart, StudyParts, part
from hnas.benchmarks.papers.report import ClaimVerdict, StudyReport, StudyTable, judge_difference
from hnas.benchmarks.papers.searches import RATES, SearchSetting, search_within
from hnas.benchmarks.papers.statistics import kendall, mean_interval, paired
from hnas.benchmarks.papers.supernets import RATE, space_of, train_on_budget
from hnas.benchmarks.papers.tabular_plan import digits_data, tabular_scale
from hnas.cost.flops import parameters
from hnas.shrinking import evidence, unsharing
from hnas.shrinking.edits import ShrinkRules, drop_worst
from hnas.shrinking.loop import StageTraining, reachable_weights, run_stages
from hnas.space import Arch, Space
from hnas.strategies import spos
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.training.loop import Schedule

__all__ = ("CLAIMS", "host", "sample_members", "unshared")  # a part is identified by the name of its run function

_HOSTS = ("spos", "fairnas", "proxylessnas", "darts", "pdarts")
_QUICK_HOSTS = ("spos", "pdarts")  # one without logits, one with
_EVIDENCE: dict[str, dict[str, Any]] = {
    "angle": {"samples": 200},
    "rank_sum": {"parts": {"angle": {"samples": 200, "form": "standardised"}, "one_shot_accuracy": {"samples": 4}}},
    "chance": {},
}
_COUNTS = "parameters"  # the control by which an operation is worth its weights
_SPACES = (None, *_EVIDENCE, _COUNTS)
_SHARE = 0.4  # of the path passes, for shrinking
_STAGES = (0.6, 0.15, 0.15, 0.1)  # of that share; no drop follows the last stage
_DROP = 4  # operations after each of the other stages, of 20
_SCORED = 160  # architectures that a host without logits scores


@dataclass(frozen=True, kw_only=True)
class _HostSetting:
    """The setting of a search: the host ``strategy``, and the evidence ``by`` which the space is shrunk, or None.

    rate: Adam's learning rate for the architecture parameters of a host that has some.
    """

    data: StudyData
    strategy: str
    by: str | None
    passes: int
    rate: float | None = None


@dataclass(frozen=True, kw_only=True)
class _UnsharedSetting:
    """The setting of a part that shrinks by the angle and trains on, with shared or with split weights."""

    data: StudyData
    split: bool
    passes: int


def host(images: Path | None, seed: int, setting: _HostSetting) -> Result:
    """Search the full space, or the space that shrinking leaves; return the architecture that the search chooses.

    Shrinking trains single paths for a share of the path passes. The host has the other passes and starts with new
    weights. It chooses by its logits if it has logits, otherwise by search accuracy.
    """
    task = setting.data.task(images, seed)
    passes = setting.passes
    left = whole = space_of(tabular.SPACE, {})
    if setting.by is not None:
        spent = round(_SHARE * passes)
        passes -= spent
        if setting.by == _COUNTS:
            left = _largest_operations(whole)
        else:
            left = _shrink_space(Study(Supernet(whole, seed), task, seed=seed), setting.by, spent)
    fresh = seed + 1000
    if setting.rate is not None:
        search = SearchSetting(
            data=setting.data,
            space=tabular.SPACE,
            arguments={},
            strategy=setting.strategy,
            budget={"passes": passes},
            rate=setting.rate,
        )
        return {**search_within(images, fresh, search, left), "size": left.size}
    study = Study(Supernet(whole, fresh), replace(task, seed=fresh), seed=fresh)
    found = train_on_budget(study, setting.strategy, {"passes": passes}, space=left)
    arch = max(sample_members(left, 16 if setting.data.quick else _SCORED, seed), key=study.accuracy)
    return {**found, "arch": arch.to_json(), "size": left.size}


def sample_members(space: Space, limit: int, seed: int) -> list[Arch]:
    """Return every member of a space, or ``limit`` random members."""
    members = tabular.all_members(space)
    return members if len(members) <= limit else Random(f"members/{seed}").sample(members, limit)


def _largest_operations(space: Space) -> Space:
    """Return the space without as many operations as ``_shrink_space`` drops: those with the fewest weights.

    Nothing is trained for this. The host has as many path passes as after another shrinking.
    """
    largest = space.largest
    with torch.device("meta"):
        weights = {
            (name, option): float(parameters(space.build(space.arch({**largest, name: option}))))
            for name, choice in space.choices.items()
            for option in choice.options
        }
    drops = _DROP * (len(_STAGES) - 1)
    return drop_worst(space, weights, ShrinkRules(drops, force=True))[0]


def _shrink_space(study: Study, by: str, passes: int) -> Space:
    """Return the space that is left after stages of single paths, each of which drops equally many operations.

    The first stage has most of the training, as published: 100 epochs, then 5 for each stage.
    """
    options = {**_EVIDENCE[by], "load": evidence.load} if by == "rank_sum" else {**_EVIDENCE[by], "seed": study.seed}
    stages = [Schedule(((max(1, round(passes * share)), RATE),)) for share in _STAGES]
    scores = partial(evidence.load(by).scores, **options)
    training, rules = StageTraining(stages, spos.pick), ShrinkRules(_DROP, force=True)
    return run_stages(study, study.supernet.space, scores, training, rules, key=by)


def unshared(images: Path | None, seed: int, setting: _UnsharedSetting) -> Result:
    """Shrink by the angle, train on, and score members of the space that is left.

    With ``split``, a surviving operation gets a copy for each type of the slot before it. Operations with the highest
    sharing degree times gradient conflict come first. The weights in use stay below those of the supernet before
    shrinking. The path passes are the same with and without ``split``.
    """
    whole = space_of(tabular.SPACE, {})
    study = Study(Supernet(whole, seed), setting.data.task(images, seed), seed=seed)
    spent = round(_SHARE * setting.passes)
    space = _shrink_space(study, "angle", spent)
    before = sum(p.numel() for p in study.supernet.union.parameters())
    copied = unsharing.unshare(study, space, p_max=1.0, seed=seed) if setting.split else ()
    sizes = {name: p.numel() for name, p in study.supernet.union.named_parameters()}
    used = sum(sizes[name] for name in reachable_weights(study.supernet, space))
    train_on_budget(study, "spos", {"passes": setting.passes - spent}, space=space)
    members = sample_members(space, 16 if setting.data.quick else _SCORED, seed)
    return {
        "archs": [arch.to_json() for arch in members],
        "search": [study.accuracy(arch) for arch in members],
        "parameters": used,
        "copies": len(copied),
        "before": before,
    }


# --- D3 ---------------------------------------------------------------------------------------------------------------


def _host_parts(plan: StudyPlan, strategy: str, by: str | None) -> list[StudyPart]:
    """Return one search for every seed."""
    rate = RATES[tabular.SPACE].get(strategy)
    setting = _HostSetting(data=digits_data(plan), strategy=strategy, by=by, passes=plan.passes, rate=rate)
    return [part(host, seed, setting, work=plan.passes + 4 * _SCORED) for seed in range(plan.seeds)]


def _d3_parts(plan: StudyPlan, _: StudyParts) -> list[StudyPart]:
    """Return every host on the full space, and on the spaces that each evidence leaves."""
    return [each for strategy in _hosts(plan) for by in _SPACES for each in _host_parts(plan, strategy, by)]


def _hosts(plan: StudyPlan) -> tuple[str, ...]:
    return _QUICK_HOSTS if plan.quick else _HOSTS


def _d3_judge(plan: StudyPlan, parts: StudyParts) -> StudyReport:
    """Compare the accuracy alone of the found architectures: shrunken with full, and with shrunken at random."""
    table = truth.tabular()
    space = space_of(tabular.SPACE, {})
    verdicts: list[ClaimVerdict] = []
    rows = []
    for strategy in _hosts(plan):
        found: dict[str | None, list[float]] = {}
        for by in _SPACES:
            results = [parts[each] for each in _host_parts(plan, strategy, by)]
            at = [table.place[space.arch(result["arch"])] for result in results]
            found[by] = [float(table.real[k]) for k in at]
            params = float(np.mean([table.params[k] for k in at]))
            accuracy = mean_interval(found[by]).line(100, sign="")
            size = float(np.mean([result["size"] for result in results]))
            by_seed = " ".join(f"{100 * each:.2f}" for each in found[by])
            rows.append([strategy, by or "full space", accuracy, by_seed, params, size])
        verdicts += _compare_spaces(strategy, found)
    best, mean = 100 * float(table.real.max()), 100 * float(table.real.mean())
    columns = ("host", "space", "accuracy alone % [95 %]", "of each seed", "params", "architectures")
    notes = [f"the best architecture of the table has {best:.2f} %, the mean one {mean:.2f} %"]
    notes.append("shrinking and host share the path passes; shrinking by parameters spends its share on nothing")
    rates = ", ".join(f"{name} {rate:g}" for name, rate in RATES[tabular.SPACE].items() if name in _HOSTS)
    notes.append(f"Adam's rates for alpha, from the pilot of E5: {rates}")
    how = (
        f"{plan.passes:,} passes a search, of which shrinking takes {_SHARE:.0%}; up to {_SCORED} architectures scored"
    )
    tables = [StudyTable("what each search ends with", columns, rows)]
    return StudyReport(tabular_scale(plan, how), verdicts, tables, notes)


def _compare_spaces(strategy: str, found: Mapping[str | None, Sequence[float]]) -> list[ClaimVerdict]:
    """Compare the spaces that evidence leaves with the full space and the controls; ``found``: space -> accuracies."""
    return [
        judge_difference(f"{strategy}: shrunken by {by} > {rival or 'full space'}", paired(found[by], found[rival]))
        for by in ("angle", "rank_sum")
        for rival in (None, "chance", _COUNTS)
    ]


# --- D4 ---------------------------------------------------------------------------------------------------------------


def _unshared_parts(plan: StudyPlan, split: bool) -> list[StudyPart]:
    """Return one training with shared or with split weights, for every seed."""
    setting = _UnsharedSetting(data=digits_data(plan), split=split, passes=plan.passes)
    return [part(unshared, seed, setting, work=plan.passes + 4 * _SCORED) for seed in range(plan.seeds)]


def _d4_parts(plan: StudyPlan, _: StudyParts) -> list[StudyPart]:
    """Return shared and split trainings, for every seed."""
    return [*_unshared_parts(plan, split=False), *_unshared_parts(plan, split=True)]


def _d4_judge(plan: StudyPlan, parts: StudyParts) -> StudyReport:
    """Compare split with shared weights: tau within the shrunken space, and the accuracy of the chosen architecture."""
    results = {name: [parts[each] for each in _unshared_parts(plan, name == "split")] for name in ("shared", "split")}
    found = {name: [_rank_within(result) for result in listed] for name, listed in results.items()}
    names = ("tau in the shrunken space", "accuracy alone of the chosen", "mean one-shot accuracy")
    verdicts = []
    for k, name in enumerate(names):
        split, shared = ([figures[k] for figures in found[weights]] for weights in ("split", "shared"))
        verdicts.append(
            judge_difference(f"{name}: split > shared", paired(split, shared), "tau" if k == 0 else "points")
        )
    rows = [
        [title, *np.mean(found[title], 0).tolist(), float(np.mean([result["parameters"] for result in listed]))]
        for title, listed in results.items()
    ]
    before = results["shared"][0]["before"]
    note = f"split or not, the weights in use stay below the {before:,} of the supernet before shrinking"
    how = f"{plan.passes:,} single-path steps, of which shrinking takes {_SHARE:.0%}"
    tables = [StudyTable("means over seeds", ("weights", *names, "parameters"), rows)]
    return StudyReport(tabular_scale(plan, how), verdicts, tables, [note])


def _rank_within(result: Result) -> tuple[float, float, float]:
    """Return tau with training alone, the accuracy alone of the chosen architecture, and the mean one-shot accuracy."""
    table, space = truth.tabular(), space_of(tabular.SPACE, {})
    real: Sequence[float] = [float(table.real[table.place[space.arch(arch)]]) for arch in result["archs"]]
    chosen = real[int(np.argmax(result["search"]))]
    return kendall(result["search"], real), chosen, float(np.mean(result["search"]))


CLAIMS = (
    Claim(
        "D3",
        "shrinking helps whatever search follows",
        "SPOS, FairNAS, ProxylessNAS, DARTS and P-DARTS find better architectures in the space shrunken by the angle",
        "accuracy alone of what is found: shrunken > full space AND > shrunken at random, in the paired interval",
        _d3_parts,
        _d3_judge,
    ),
    Claim(
        "D4",
        "less sharing ranks better",
        "splitting the weights of surviving operations, paid for by the dropped ones, ranks architectures better",
        "tau in the shrunken space is higher split than shared, at no more weights than before shrinking",
        _d4_parts,
        _d4_judge,
    ),
)
