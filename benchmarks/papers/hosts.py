"""D3, D4: what shrinking and less sharing do to the searches that run afterwards (ABS, arXiv 2004.13431; PWSNAS)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from hnas.benchmarks.papers import data, tabular, truth
from hnas.benchmarks.papers.claims import Claim, Plan
from hnas.benchmarks.papers.parts import Part, Parts, Result, part
from hnas.benchmarks.papers.pwsnas import digits, scale
from hnas.benchmarks.papers.report import Report, Table, verdict
from hnas.benchmarks.papers.statistics import kendall, mean_interval, paired
from hnas.benchmarks.papers.supernets import RATE, space_of, train
from hnas.shrinking import evidence, unsharing
from hnas.shrinking import loop as shrinking
from hnas.space import Arch, Space
from hnas.strategies import spos
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.training.loop import Schedule

HOSTS = ("spos", "fairnas", "proxylessnas")
EVIDENCE: dict[str, dict[str, Any]] = {
    "angle": {"samples": 200},
    "rank_sum": {"parts": {"angle": {"samples": 200, "form": "standardised"}, "one_shot_accuracy": {"samples": 4}}},
    "chance": {},
}
SHARE = 0.4  # of the path passes, for shrinking
STAGES = (0.6, 0.15, 0.15, 0.1)  # of that; the last is not followed by a drop
_DROP = 4  # operations after each of the others, of 20
_SCORED = 160  # architectures that a host scores, where it has no logits


def host(
    images: Path | None,
    seed: int,
    *,
    of: Mapping[str, str],
    strategy: str,
    by: str | None,
    passes: int,
    quick: bool = False,
) -> Result:
    """A search on the full space, or on the one that is left by evidence ``by``: the architecture it ends with.

    Shrinking takes a share of the path passes, by single paths; the host has the rest and begins with new weights.
    Chosen: by the logits where the host has them, by search accuracy otherwise.
    """
    task = data.named(of, images, seed, quick)
    left = whole = space_of(tabular.SPACE, {})
    if by is not None:
        spent = round(SHARE * passes)
        left = shrunken(Study(Supernet(whole, seed), task, seed=seed), by, spent)
        passes -= spent
    fresh = seed + 1000
    study = Study(Supernet(whole, fresh), replace(task, seed=fresh), seed=fresh)
    found = train(study, strategy, {}, {"passes": passes}, space=left)
    if found["logits"]:
        best = {slot: int(np.argmax(logits)) for slot, logits in found["logits"].items()}
        arch = left.arch({f"{slot}.op": left.choices[f"{slot}.op"].options[k] for slot, k in best.items()})
    else:
        arch = max(some(left, 16 if quick else _SCORED, seed), key=study.accuracy)
    return {**found, "arch": arch.to_json(), "size": left.size}


def some(space: Space, limit: int, seed: int) -> list[Arch]:
    """Every member, or so many random ones."""
    members = tabular.enumerated(space)
    return members if len(members) <= limit else Random(f"members/{seed}").sample(members, limit)


def shrunken(study: Study, by: str, passes: int) -> Space:
    """What is left of the study's space after stages of single paths, each of which drops as many operations.

    The first stage has most of the training, as published: 100 epochs, then 5 for each.
    """
    options = dict(EVIDENCE[by]) if by == "rank_sum" else {**EVIDENCE[by], "seed": study.seed}
    stages = [Schedule(((max(1, round(passes * share)), RATE),)) for share in STAGES]
    scores = partial(evidence.load(by).scores, **options)
    return shrinking.run(study, study.supernet.space, scores, stages, spos.pick, name=by, drop=_DROP, force=True)


def unshared(
    images: Path | None, seed: int, *, of: Mapping[str, str], split: bool, passes: int, quick: bool = False
) -> Result:
    """Shrink by the angle, then train on with shared or with split weights: how it ranks what is left.

    Split: surviving operations get a copy for each type of the slot before, the most shared and torn first, as long as
    the weights in use stay below those of the supernet before shrinking. The same path passes either way.
    """
    task = data.named(of, images, seed, quick)
    whole = space_of(tabular.SPACE, {})
    study = Study(Supernet(whole, seed), task, seed=seed)
    space = shrunken(study, "angle", round(SHARE * passes))
    sizes = {name: p.numel() for name, p in study.supernet.union.named_parameters()}
    before = sum(sizes.values())
    copied = unsharing.unshare(study, space, p_max=1.0, seed=seed) if split else ()
    sizes = {name: p.numel() for name, p in study.supernet.union.named_parameters()}
    used = sum(sizes[name] for name in shrinking.living(study.supernet, space))
    train(study, "spos", {}, {"passes": passes - round(SHARE * passes)}, space=space)
    members = some(space, 16 if quick else _SCORED, seed)
    scores = [study.accuracy(arch) for arch in members]
    return {
        "archs": [arch.to_json() for arch in members],
        "search": scores,
        "parameters": used,
        "copies": len(copied),
        "before": before,
    }


# --- D3 ---------------------------------------------------------------------------------------------------------------


def searched(plan: Plan, strategy: str, by: str | None) -> list[Part]:
    """One search for every seed."""
    work = plan.passes + 4 * _SCORED
    setting: dict[str, Any] = {"strategy": strategy, "by": by, "passes": plan.passes}
    return [part(host, seed, work=work, **digits(plan), **setting) for seed in range(plan.seeds)]


def _d3_parts(plan: Plan, _: Parts) -> list[Part]:
    """Every host on the full space and on those that each evidence leaves."""
    return [each for strategy in HOSTS for by in (None, *EVIDENCE) for each in searched(plan, strategy, by)]


def _d3_judge(plan: Plan, parts: Parts) -> Report:
    """The true accuracy of what is found: shrunken minus full, and minus shrunken at random."""
    table = truth.tabular()
    space = space_of(tabular.SPACE, {})
    verdicts, rows = [], []
    for strategy in HOSTS:
        found: dict[str | None, list[float]] = {}
        for by in (None, *EVIDENCE):
            at = [table.place[space.arch(parts[each]["arch"])] for each in searched(plan, strategy, by)]
            found[by] = [float(table.real[k]) for k in at]
            sizes = [parts[each]["size"] for each in searched(plan, strategy, by)]
            params = float(np.mean([table.params[k] for k in at]))
            accuracy = mean_interval(found[by]).line(100, sign="")
            rows.append([strategy, by or "full space", accuracy, params, float(np.mean(sizes))])
        for by in ("angle", "rank_sum"):
            for rival in (None, "chance"):
                question = f"{strategy}: shrunken by {by} > {rival or 'full space'}"
                verdicts.append(verdict(question, paired(found[by], found[rival])))
    best, mean = 100 * float(table.real.max()), 100 * float(table.real.mean())
    columns = ("host", "space", "accuracy alone % [95 %]", "params", "architectures")
    notes = [f"the best architecture of the table has {best:.2f} %, the mean one {mean:.2f} %"]
    notes.append("shrinking and host share the path passes; DARTS and P-DARTS are not among the hosts yet")
    how = f"{plan.passes:,} passes a search, of which shrinking takes {SHARE:.0%}; up to {_SCORED} architectures scored"
    return Report(scale(plan, how), verdicts, [Table("what each search ends with", columns, rows)], notes)


# --- D4 ---------------------------------------------------------------------------------------------------------------


def _d4_parts(plan: Plan, _: Parts) -> list[Part]:
    """Shared and split, for every seed."""
    work = plan.passes + 4 * _SCORED
    setting: dict[str, Any] = {"passes": plan.passes}
    return [
        part(unshared, seed, work=work, **digits(plan), **setting, split=split)
        for split in (False, True)
        for seed in range(plan.seeds)
    ]


def _d4_judge(plan: Plan, parts: Parts) -> Report:
    """Tau within the shrunken space, and the accuracy of what is chosen, split minus shared."""
    table = truth.tabular()
    space = space_of(tabular.SPACE, {})

    def judged(result: Result) -> tuple[float, float, float]:
        real = [float(table.real[table.place[space.arch(arch)]]) for arch in result["archs"]]
        chosen = real[int(np.argmax(result["search"]))]
        return kendall(result["search"], real), chosen, float(np.mean(result["search"]))

    every = _d4_parts(plan, parts)
    shared, split = ([judged(parts[each]) for each in some] for some in (every[: plan.seeds], every[plan.seeds :]))
    names = ("tau in the shrunken space", "accuracy alone of the chosen", "mean one-shot accuracy")
    verdicts = []
    for k, name in enumerate(names):
        pair: list[Sequence[float]] = [[row[k] for row in rows] for rows in (split, shared)]
        verdicts.append(verdict(f"{name}: split > shared", paired(*pair), "tau" if k == 0 else "points"))
    rows = [
        [title, *(float(np.mean([row[k] for row in found])) for k in range(3)), float(np.mean(sizes))]
        for title, found, sizes in (
            ("shared", shared, [parts[each]["parameters"] for each in every[: plan.seeds]]),
            ("split", split, [parts[each]["parameters"] for each in every[plan.seeds :]]),
        )
    ]
    before = parts[every[0]]["before"]
    note = f"split or not, the weights in use stay below the {before:,} of the supernet before shrinking"
    how = f"{plan.passes:,} single-path steps, of which shrinking takes {SHARE:.0%}"
    tables = [Table("means over seeds", ("weights", *names, "parameters"), rows)]
    return Report(scale(plan, how), verdicts, tables, [note])


CLAIMS = (
    Claim(
        "D3",
        "shrinking helps whatever search follows",
        "SPOS, FairNAS and ProxylessNAS find better architectures in the space shrunken by the angle",
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
