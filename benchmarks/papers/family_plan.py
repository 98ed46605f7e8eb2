"""Plan the searches of E2 to E5, and read what they end with from the tables: ``search_parts``, ``ends_of``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch

from hnas.benchmarks.papers import data, truth
from hnas.benchmarks.papers.claims import StudyPlan
from hnas.benchmarks.papers.parts import StudyPart, StudyParts, part
from hnas.benchmarks.papers.report import ClaimVerdict, StudyTable, judge_difference
from hnas.benchmarks.papers.searches import EVOLVED, RATES, TABLES, SearchSetting, passes_of_a_step, searched
from hnas.benchmarks.papers.statistics import mean_interval, paired
from hnas.benchmarks.papers.tabular_plan import digits_data
from hnas.benchmarks.papers.truth import Truth
from hnas.sampling.derive import derive, skips_of
from hnas.sampling.draws import keep_types, slot_types
from hnas.space import Arch, Space

CELLS = "cells"
OURS = "msgdas"
GUIDED: dict[str, Any] = {"guidance": True}  # as in the paper
# Of MSG-DAS where they are not compared: two sub-graphs, and no guidance, as in the product since E4.
_OURS: dict[str, Any] = {"paths": 2, "guidance": False}
_RIVALS = ("darts", "gdas", "proxylessnas", "pdarts", EVOLVED)
_STAGES = "pdarts"  # its logits are those of the space that is left


# --- parts ------------------------------------------------------------------------------------------------------------


def truth_of(table: str) -> Truth:
    """Return the accuracies of a table."""
    return truth.cells() if table == CELLS else truth.tabular()


def setting_of(
    plan: StudyPlan, table: str, strategy: str, options: Mapping[str, Any] | None = None, passes: int | None = None
) -> SearchSetting:
    """Return the setting of a search on the space of a table.

    options: of the strategy; MSG-DAS has two sub-graphs and no guidance unless they say otherwise.
    passes: None: those of the plan.
    """
    made = TABLES[table]
    return SearchSetting(
        data=digits_data(plan),
        space=made.space,
        arguments=made.arguments,
        strategy=strategy,
        budget={"passes": passes or plan.passes},
        options={**_OURS, **(options or {})} if strategy == OURS else dict(options or {}),
        rate=RATES[table].get(strategy, 0.003),
    )


def search_parts(
    plan: StudyPlan, table: str, strategy: str, options: Mapping[str, Any] | None = None, passes: int | None = None
) -> list[StudyPart]:
    """Return one search for every seed; arguments as in ``setting_of``."""
    setting = setting_of(plan, table, strategy, options, passes)
    return [part(searched, seed, setting, work=setting.budget["passes"]) for seed in range(plan.seeds)]


def rivals_of(plan: StudyPlan, *, logits: bool = False) -> tuple[str, ...]:
    """Return the searches that MSG-DAS is compared with; a quick run has one of each kind.

    logits: only those with logits of the whole space.
    """
    found = ("darts", _STAGES, EVOLVED) if plan.quick else _RIVALS
    return tuple(name for name in found if not logits or name not in (_STAGES, EVOLVED))


def tables_of(plan: StudyPlan) -> tuple[str, ...]:
    """Return the tables of a study; a quick run has the small one."""
    return (CELLS,) if plan.quick else tuple(TABLES)


# --- figures ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _SearchEnds:
    """Hold the figures of the networks that the searches of a method end with, one for each seed.

    accuracy: alone, on the test split, mean over the seeds of the table.
    costs: steps, passes and seconds, means over the seeds of the study; None: not measured.
    """

    accuracy: Sequence[float]
    skips: Sequence[int]
    costs: tuple[float, float, float | None]

    def row(self, name: str, best: float) -> list[Any]:
        """Return a row of the table ``COLUMNS``."""
        lost = 100 * (best - np.array(self.accuracy))
        spread = 100 * float(np.std(self.accuracy, ddof=1)) if len(self.accuracy) > 1 else 0.0
        shown = [mean_interval(self.accuracy).line(100, sign=""), f"{lost.mean():.2f} (at most {lost.max():.2f})"]
        return [
            name,
            *shown,
            spread,
            " ".join(map(str, self.skips)),
            *("-" if x is None else round(x, 1) for x in self.costs),
        ]


COLUMNS = (
    "search",
    "accuracy alone % [95 %]",
    "regret, points",
    "sd of seeds, points",
    "skips",
    "steps",
    "passes",
    "CPU seconds",
)


def ends_of(table: str, parts: StudyParts, wanted: Sequence[StudyPart], without: Sequence[str] = ()) -> _SearchEnds:
    """Look up the networks that the searches ended with.

    without: types that the derivation leaves out; the logits must be those of the whole space.
    """
    known = truth_of(table)
    space = TABLES[table].whole
    results = [parts[each] for each in wanted]
    archs = [_derived(space, each["logits"], without) if without else space.arch(each["arch"]) for each in results]
    identities = skips_of(space)
    skips = [sum(arch[f"{slot}.op"] in kinds for slot, kinds in identities.items()) for arch in archs]
    costs = [float(np.mean([result[name] for result in results])) for name in ("steps", "passes", "seconds")]
    return _SearchEnds([float(known.real[known.place[arch]]) for arch in archs], skips, (costs[0], costs[1], costs[2]))


def _derived(space: Space, logits: Mapping[str, Sequence[float]], without: Sequence[str]) -> Arch:
    """Return the member of the most likely types, ``without`` some."""
    kept = {slot: [k for k, kind in enumerate(slot_types(space, slot)) if kind not in without] for slot in space.slots}
    names = {slot: [slot_types(space, slot)[k] for k in own] for slot, own in kept.items()}
    return derive(keep_types(space, names), {slot: torch.tensor(logits[slot])[own] for slot, own in kept.items()})


def random_ends(plan: StudyPlan, table: str, passes: float, pace: float | None = None) -> _SearchEnds:
    """Return what random search ends with: it trains members alone, and takes the best on the search split.

    passes: the passes of 64 images, by which its members are counted.
    pace: CPU seconds of a pass, if it was measured.
    """
    made, known = TABLES[table], truth_of(table)
    each = made.steps * passes_of_a_step(made.batch)
    count = max(1, round(passes / each))
    found = []
    for seed in range(plan.seeds):
        drawn = Random(f"random/{seed}").sample(range(len(known.archs)), count)
        found.append(float(known.real[max(drawn, key=lambda k: known.search[k, seed % known.search.shape[1]])]))
    seconds = None if pace is None else pace * each * count
    return _SearchEnds(found, [], (made.steps * count, each * count, seconds))


def scale_of(plan: StudyPlan, tables: Sequence[str]) -> str:
    """Return the scale of a verdict as text: data, tables, passes and seeds."""
    counts = [truth_of(table).accuracy.shape for table in tables]
    alone = ", ".join(f"{table}: {n} members, {s} seeds each" for table, (n, s) in zip(tables, counts, strict=True))
    passes = f"{plan.passes:,} passes of 64 images a search"
    return f"{data.sentence(None, plan.quick)}; trained alone: {alone}; {passes}; {plan.seeds} seeds"


def notes_of(tables: Sequence[str]) -> list[str]:
    """Return notes on the best and the mean member of the tables, and on the rates of the searches."""
    real = {table: 100 * truth_of(table).real for table in tables}
    best = [f"{table}: the best has {x.max():.2f} %, the mean one {x.mean():.2f} %" for table, x in real.items()]
    rates = [f"{table}: {', '.join(f'{name} {rate:g}' for name, rate in RATES[table].items())}" for table in tables]
    return [*best, f"Adam's rates for alpha, from a pilot on other seeds: {'; '.join(rates)}"]


def compare_variants(
    parts: StudyParts,
    table: str,
    variants: Mapping[str, Sequence[StudyPart]],
    pairs: Sequence[tuple[str, str]],
) -> tuple[list[ClaimVerdict], StudyTable]:
    """Compare the accuracies alone of pairs of variants; return the verdicts and a table of all variants."""
    best = float(truth_of(table).real.max())
    ends = {name: ends_of(table, parts, wanted) for name, wanted in variants.items()}
    verdicts = [judge_difference(f"{table}: {a} > {b}", paired(ends[a].accuracy, ends[b].accuracy)) for a, b in pairs]
    rows = [own.row(name, best) for name, own in ends.items()]
    return verdicts, StudyTable(f"{table}: what each search ends with", COLUMNS, rows)
