"""E2 to E5: MSG-DAS, its parts and its family, on two spaces whose members were all trained alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from hnas.benchmarks.papers.claims import Claim, StudyPlan
from hnas.benchmarks.papers.family_plan import (
    CELLS,
    COLUMNS,
    GUIDED,
    OURS,
    compare_variants,
    ends_of,
    notes_of,
    random_ends,
    rivals_of,
    scale_of,
    search_parts,
    setting_of,
    tables_of,
    truth_of,
)
from hnas.benchmarks.papers.parts import StudyPart, StudyParts, part
from hnas.benchmarks.papers.report import ClaimVerdict, StudyReport, StudyTable, judge_difference
from hnas.benchmarks.papers.saved import SavedSetting, saved
from hnas.benchmarks.papers.searches import EVOLVED, RANDOM, TABLES, PaceSetting, paces, searched
from hnas.benchmarks.papers.statistics import mean_interval, paired
from hnas.benchmarks.papers.tabular_plan import digits_data
from hnas.spaces.nasbench201 import NONE

_MEMORY = 1.15  # activations of three sub-graphs may be this many times those of one path
_FASTER = 0.05  # the other rate of the pilot, a control for MSG-DAS
_FEWER = 0.2  # of the images for alpha, a control: ProxylessNAS, too, trains weights on four of five images
_PACE_PASSES = 120  # of a search that is timed


# --- E2 ---------------------------------------------------------------------------------------------------------------


def _numbers(plan: StudyPlan) -> tuple[int, ...]:
    """Return the numbers of sub-graphs; the last is the number of types."""
    return (1, 2) if plan.quick else (1, 2, 3, 5)


def _options_of_numbers(plan: StudyPlan) -> dict[str, dict[str, Any]]:
    """Return the options of every number of sub-graphs. The control: the largest number, with guidance."""
    most = _numbers(plan)[-1]
    return {f"K = {k}": {"paths": k} for k in _numbers(plan)} | {f"K = {most}, guidance": {"paths": most, **GUIDED}}


def _by_number(plan: StudyPlan, table: str) -> dict[str, list[StudyPart]]:
    return {name: search_parts(plan, table, OURS, each) for name, each in _options_of_numbers(plan).items()}


def _saved_parts(plan: StudyPlan, table: str) -> list[StudyPart]:
    """Return the parts that count saved activations."""
    made = TABLES[table]
    picks: dict[str, tuple[str, Mapping[str, Any]]] = {"one path": (EVOLVED, {}), "gdas": ("gdas", {})}
    picks |= {name: (OURS, each) for name, each in _options_of_numbers(plan).items()} | {"darts": ("darts", {})}
    setting = SavedSetting(
        data=digits_data(plan),
        space=made.space,
        arguments=made.arguments,
        picks=picks,
        steps=4 if plan.quick else 64,
    )
    return [part(saved, seed, setting) for seed in range(plan.seeds)]


def _e2_parts(plan: StudyPlan, _: StudyParts) -> list[StudyPart]:
    """Return the searches with every number of sub-graphs, and the counts of saved activations."""
    searches = [each for table in tables_of(plan) for listed in _by_number(plan, table).values() for each in listed]
    return [*searches, *(each for table in tables_of(plan) for each in _saved_parts(plan, table))]


def _e2_judge(plan: StudyPlan, parts: StudyParts) -> StudyReport:
    """Compare the numbers of sub-graphs with one: accuracy, spread, skips and saved activations."""
    verdicts, tables = [], []
    for table in tables_of(plan):
        variants = _by_number(plan, table)
        first, *others, guided = variants
        pairs = [*((name, first) for name in others), (others[-1], guided)]
        found, shown = compare_variants(parts, table, variants, pairs)
        counted = [parts[each] for each in _saved_parts(plan, table)]
        most = f"K = {min(3, _numbers(plan)[-1])}"
        shares = {name: [each[name] / each["one path"] for each in counted] for name in counted[0]}
        question = f"{table}: saved activations of {most} are at most {_MEMORY} times those of one path"
        left = mean_interval([_MEMORY - share for share in shares[most]])
        verdicts += [*found, judge_difference(question, left, "of one path's left")]
        rows = [[name, float(np.mean(values)), counted[0][name]] for name, values in shares.items()]
        columns = ("pass", "times one path's", "bytes, first seed")
        tables += [shown, StudyTable(f"{table}: saved activations of the largest pass of a step", columns, rows)]
    return StudyReport(scale_of(plan, tables_of(plan)), verdicts, tables, notes_of(tables_of(plan)))


# --- E3, E4 -----------------------------------------------------------------------------------------------------------


def _dropped(plan: StudyPlan) -> dict[str, list[StudyPart]]:
    """Return the searches with blocks dropped, with none, and with single positions dropped. Cells alone have skips."""
    options: dict[str, dict[str, Any]] = {
        "blocks dropped": {},
        "no drop": {"drop": 0.0},
        "positions dropped": {"block": 1},
    }
    return {name: search_parts(plan, CELLS, OURS, each) for name, each in options.items()}


def _e3_parts(plan: StudyPlan, _: StudyParts) -> list[StudyPart]:
    return [each for listed in _dropped(plan).values() for each in listed]


def _e3_judge(plan: StudyPlan, parts: StudyParts) -> StudyReport:
    """Compare Dropblock-Identity with no drop and with plain dropout: skips, and accuracy alone."""
    variants = _dropped(plan)
    on, off, single = variants
    verdicts, table = compare_variants(parts, CELLS, variants, [(on, off), (on, single)])
    skips = {name: ends_of(CELLS, parts, wanted).skips for name, wanted in variants.items()}
    fewer = judge_difference(f"{CELLS}: fewer skips, {on} than {off}", paired(skips[off], skips[on]), "skips")
    notes = [
        *notes_of((CELLS,)),
        "a cell has three edges; tabular_digits has no identity branch, so nothing is dropped there",
    ]
    return StudyReport(scale_of(plan, (CELLS,)), [fewer, *verdicts], [table], notes)


def _guided(plan: StudyPlan, table: str) -> dict[str, list[StudyPart]]:
    options: dict[str, dict[str, Any]] = {"guidance": GUIDED, "no guidance": {}}
    return {name: search_parts(plan, table, OURS, each) for name, each in options.items()}


def _e4_parts(plan: StudyPlan, _: StudyParts) -> list[StudyPart]:
    return [each for table in tables_of(plan) for listed in _guided(plan, table).values() for each in listed]


def _e4_judge(plan: StudyPlan, parts: StudyParts) -> StudyReport:
    """Compare searches with and without the super-net as a teacher; its passes count as a third."""
    verdicts, tables = [], []
    for table in tables_of(plan):
        found, shown = compare_variants(parts, table, _guided(plan, table), [("guidance", "no guidance")])
        verdicts += found
        tables.append(shown)
    return StudyReport(scale_of(plan, tables_of(plan)), verdicts, tables, notes_of(tables_of(plan)))


# --- E5 ---------------------------------------------------------------------------------------------------------------


def _family(plan: StudyPlan, table: str, passes: Callable[[str], int | None]) -> dict[str, list[StudyPart]]:
    """Return method -> its searches with ``passes(method)`` passes; None: those of the plan."""
    return {name: search_parts(plan, table, name, passes=passes(name)) for name in (OURS, *rivals_of(plan))}


def _pace_part(plan: StudyPlan) -> StudyPart:
    """Return the part that measures the seconds of a pass on cells, for every method."""
    passes = min(_PACE_PASSES, plan.passes)
    searches = {name: setting_of(plan, CELLS, name, passes=passes) for name in (OURS, *rivals_of(plan))}
    rounds = 1 if plan.quick else 3
    setting = PaceSetting(data=digits_data(plan), table=CELLS, searches=searches, rounds=rounds)
    return part(paces, 0, setting, work=passes, timed=True)


def _equal_seconds(plan: StudyPlan, parts: StudyParts, method: str) -> int:
    """Return the passes that a method makes in the time in which MSG-DAS makes those of the plan."""
    pace = parts[_pace_part(plan)]
    return max(1, round(plan.passes * float(pace[OURS]) / float(pace[method])))


def _e5_parts(plan: StudyPlan, parts: StudyParts) -> list[StudyPart]:
    """Return the searches at equal passes and the paces; when these are known, the searches at equal seconds too."""
    wanted = [
        each for table in tables_of(plan) for listed in _family(plan, table, lambda _: None).values() for each in listed
    ]
    wanted += [each for table in tables_of(plan) for listed in _controls(plan, table).values() for each in listed]
    wanted.append(_pace_part(plan))
    if wanted[-1] not in parts:
        return wanted
    timed = _family(plan, CELLS, partial(_equal_seconds, plan, parts))
    return [*wanted, *(each for listed in timed.values() for each in listed)]


def _e5_later(plan: StudyPlan, parts: StudyParts) -> dict[str, float]:
    """Return the work of the searches at equal seconds, while it is not known."""
    return {} if _pace_part(plan) in parts else {"searched": float(plan.passes * plan.seeds * len(rivals_of(plan)))}


def _controls(plan: StudyPlan, table: str) -> dict[str, list[StudyPart]]:
    """Return MSG-DAS with another rate or share of images for alpha, and with the guidance of the paper."""
    own = setting_of(plan, table, OURS)
    changed = {f"rate {_FASTER:g}": replace(own, rate=_FASTER), f"{_FEWER:.0%} for alpha": replace(own, alpha=_FEWER)}
    found = {
        f"{OURS}, {name}": [part(searched, seed, setting, work=plan.passes) for seed in range(plan.seeds)]
        for name, setting in changed.items()
    }
    return found | {f"{OURS}, guidance": search_parts(plan, table, OURS, GUIDED)}


def _judge_without_none(plan: StudyPlan, parts: StudyParts) -> tuple[list[ClaimVerdict], StudyTable]:
    """Compare the same searches on cells where the derivation leaves ``none`` out, as the published code of DARTS does.

    P-DARTS and evolution have no logits of the whole space.
    """
    family = _family(plan, CELLS, lambda _: None)
    ends = {name: ends_of(CELLS, parts, family[name], NONE) for name in (OURS, *rivals_of(plan, logits=True))}
    verdicts = [
        judge_difference(
            f"{CELLS}, equal passes, derived without none: {OURS} > {rival}",
            paired(ends[OURS].accuracy, ends[rival].accuracy),
        )
        for rival in rivals_of(plan, logits=True)
    ]
    best = float(truth_of(CELLS).real.max())
    rows = [own.row(name, best) for name, own in ends.items()]
    return verdicts, StudyTable(f"{CELLS}, equal passes: the same searches, derived without none", COLUMNS, rows)


def _e5_judge(plan: StudyPlan, parts: StudyParts) -> StudyReport:
    """Compare MSG-DAS with its family, with evolution and with random search."""
    pace = parts[_pace_part(plan)]
    verdicts, tables = [], []
    axes: list[tuple[str, str, Callable[[str], int | None]]] = [(t, "passes", lambda _: None) for t in tables_of(plan)]
    axes.append((CELLS, "seconds", partial(_equal_seconds, plan, parts)))
    for table, axis, passes in axes:
        ends = {name: ends_of(table, parts, each) for name, each in _family(plan, table, passes).items()}
        budget = float(passes(RANDOM) or plan.passes)
        controls = _controls(plan, table) if axis == "passes" else {}
        ends |= {name: ends_of(table, parts, each) for name, each in controls.items()}
        ends[RANDOM] = random_ends(plan, table, budget, pace[RANDOM] if table == CELLS else None)
        best = float(truth_of(table).real.max())
        verdicts += [
            judge_difference(
                f"{table}, equal {axis}: {OURS} > {rival}", paired(ends[OURS].accuracy, ends[rival].accuracy)
            )
            for rival in (*rivals_of(plan), RANDOM, *controls)
        ]
        rows = [own.row(name, best) for name, own in ends.items()]
        tables.append(StudyTable(f"{table}, equal {axis}: what each search ends with", COLUMNS, rows))
    found, table_without = _judge_without_none(plan, parts)
    verdicts += found
    tables.append(table_without)
    notes = notes_of(tables_of(plan))
    notes.append(f"CPU milliseconds of a pass: {', '.join(f'{k} {1000 * v:.1f}' for k, v in pace.items())}")
    notes.append("random trains members alone, and takes the best by the search accuracy of one seed")
    return StudyReport(scale_of(plan, tables_of(plan)), verdicts, tables, notes)


CLAIMS = (
    Claim(
        "E2",
        "several exclusive sub-graphs search better than one, in the memory of one path",
        "mutually exclusive sub-graphs of one draw search better than a single path, and save as few activations",
        f"accuracy alone: K = 2, 3 or n > K = 1 in the paired interval; saved activations of K = 3 at most {_MEMORY}x",
        _e2_parts,
        _e2_judge,
    ),
    Claim(
        "E3",
        "Dropblock-Identity keeps skips from winning",
        "with Dropblock-Identity the derived cells have fewer skips and are better",
        "fewer skips AND a better cell with blocks dropped than without, in the paired interval",
        _e3_parts,
        _e3_judge,
    ),
    Claim(
        "E4",
        "the super-net's guidance improves the search",
        "super-net guidance distillation improves what is derived, at little cost",
        "accuracy alone: guidance > no guidance in the paired interval, at equal passes",
        _e4_parts,
        _e4_judge,
    ),
    Claim(
        "E5",
        "MSG-DAS against its family",
        "MSG-DAS finds better networks than DARTS, GDAS and other searches at equal compute",
        "accuracy alone: msgdas > darts AND msgdas > gdas in the paired interval; passes and seconds are printed apart",
        _e5_parts,
        _e5_judge,
        _e5_later,
    ),
)
