"""C2 and C4: growth by exact morphisms against networks of fixed size and random growth, at equal steps and seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from hnas.benchmarks.papers.claims import Claim, StudyPlan
from hnas.benchmarks.papers.growth_plan import (
    ALTERNATE,
    GROWN,
    LARGE,
    RANDOM,
    SHARE,
    SMALL,
    growth_scale,
    pace_of,
    pace_part,
    rates_note,
    sequences_of,
    training_parts,
)
from hnas.benchmarks.papers.parts import StudyPart, StudyParts
from hnas.benchmarks.papers.report import ClaimVerdict, StudyReport, StudyTable, judge_difference
from hnas.benchmarks.papers.sequences import open_sequence, sequence_data
from hnas.benchmarks.papers.statistics import Interval, mean_interval
from hnas.data.windows import WindowedTask

_UNIT = "% less error"
_MARGIN = 5.0  # percent of the error: "at least equal"
_SECONDS, _STEPS, _SHARED = "seconds", "steps", f"{SHARE} of the seconds"
_COLUMNS = ("network", "equal", "test error [95 %]", "weights", "steps", "CPU seconds", "edits")
_Runs = Mapping[tuple[str, str], Sequence[StudyPart]]  # (arm, axis) -> a training for every seed


def _runs(plan: StudyPlan, parts: StudyParts, name: str, arms: Sequence[str]) -> dict[tuple[str, str], list[StudyPart]]:
    """Return the trainings of a sequence; those at equal seconds only if the paces are known.

    Equal seconds are those in which the largest network makes the steps of the plan.
    """
    found = {(arm, _STEPS): training_parts(plan, name, arm) for arm in arms}
    if pace_part(plan, name) not in parts:
        return found
    pace = partial(pace_of, plan, parts, name)
    for arm in (arm for arm in arms if arm != LARGE):
        found[arm, _SECONDS] = training_parts(plan, name, arm, times=pace(LARGE) / pace(arm))
    if arms[0] == GROWN:
        found[GROWN, _SHARED] = training_parts(plan, name, GROWN, times=SHARE * pace(LARGE) / pace(GROWN))
    return found


def _parts_of(arms: Sequence[str], plan: StudyPlan, parts: StudyParts) -> list[StudyPart]:
    wanted = []
    for name in sequences_of(plan):
        wanted += [each for listed in _runs(plan, parts, name, arms).values() for each in listed]
        wanted.append(pace_part(plan, name))
    return wanted


def _later(arms: Sequence[str], plan: StudyPlan, parts: StudyParts) -> dict[str, float]:
    """Return the work of the trainings at equal seconds, while it is not known: about that of the largest network."""
    work = 0.0
    for name in sequences_of(plan):
        if pace_part(plan, name) not in parts:
            more = SHARE if arms[0] == GROWN else 0.0
            work += sum(each.work for each in training_parts(plan, name, LARGE)) * (len(arms) - 1 + more)
    return {"grown": work} if work else {}


def _less_error(parts: StudyParts, own: Sequence[StudyPart], other: Sequence[StudyPart]) -> Interval:
    """Return by how many percent the test error of ``own`` is less than that of ``other``, paired over seeds."""
    pairs = zip(_errors(parts, own), _errors(parts, other), strict=True)
    return mean_interval([100 * (1 - mine / theirs) for mine, theirs in pairs])


def _errors(parts: StudyParts, runs: Sequence[StudyPart]) -> list[float]:
    return [-float(parts[each]["test"]) for each in runs]


def _compare(
    parts: StudyParts, title: str, runs: _Runs, pairs: Sequence[tuple[str, str]], axis: str
) -> list[ClaimVerdict]:
    """Judge each pair of arms. The largest network has one run for both axes, which are equal for it."""

    def of(arm: str) -> Sequence[StudyPart]:
        return runs[arm, _STEPS if arm == LARGE else axis]

    return [
        judge_difference(f"{title}, equal {axis}: {a} better than {b}", _less_error(parts, of(a), of(b)), _UNIT)
        for a, b in pairs
    ]


def _table(parts: StudyParts, name: str, runs: _Runs, baselines: Mapping[str, float]) -> StudyTable:
    """Return the test errors, weights and costs of every network."""
    rows: list[list[Any]] = []
    for (arm, axis), listed in runs.items():
        results = [parts[each] for each in listed]
        error = mean_interval(_errors(parts, listed)).line(digits=4, sign="")
        means = [float(np.mean([result[key] for result in results])) for key in ("weights", "seconds")]
        edits = " ".join(str(len(result["edits"])) for result in results)
        rows.append([arm, axis, error, means[0], listed[0].setting.steps, means[1], edits])
    rows += [[f"baseline: {label}", "-", f"{-value:.4f}", *["-"] * 4] for label, value in baselines.items()]
    return StudyTable(f"{name}: what each training ends with", _COLUMNS, rows)


def _baselines(name: str, plan: StudyPlan, parts: StudyParts) -> Mapping[str, float]:
    task = open_sequence(sequence_data(name, plan.quick, parts.images), 0, folder=parts.images)
    assert isinstance(task, WindowedTask)
    return task.baselines("test")


# --- the claims -------------------------------------------------------------------------------------------------------

# The first of each study is compared with the others.
_ARMS = (GROWN, LARGE, SMALL, RANDOM)
_MODES = (ALTERNATE, GROWN, LARGE, SMALL)
_NOTES = (
    f"equal seconds: the CPU seconds in which {LARGE} makes its steps, by the measured paces",
    "a network of fixed size is trained by the same code, in a space of one size, with one cycle before the last one",
)
_RANDOM_NOTE = (
    f"{RANDOM}: as many edits as {GROWN}, each of a random kind at a random place after a random step; each is exact"
)


def _judge(arms: Sequence[str], plan: StudyPlan, parts: StudyParts) -> StudyReport:
    """Compare the first arm with the others on both axes; C2 also looks at a share of the seconds of fixed-large."""
    verdicts, tables, notes = [], [], []
    for name in sequences_of(plan):
        runs = _runs(plan, parts, name, arms)
        for axis in (_STEPS, _SECONDS):
            verdicts += _compare(parts, name, runs, [(arms[0], arm) for arm in arms[1:]], axis)
        if (GROWN, _SHARED) in runs:
            lost = _less_error(parts, runs[GROWN, _SHARED], runs[LARGE, _STEPS])
            question = f"{name}, {_SHARED}: {GROWN} at least equal to {LARGE} (difference to -{_MARGIN:g} %)"
            verdicts.append(judge_difference(question, mean_interval(np.add(lost.units, _MARGIN)), _UNIT))
        tables.append(_table(parts, name, runs, _baselines(name, plan, parts)))
        notes.append(_pace_note(plan, parts, name, arms))
    notes += [*_NOTES, *([_RANDOM_NOTE] if RANDOM in arms else []), rates_note(plan)]
    return StudyReport(growth_scale(plan), verdicts, tables, notes)


def _pace_note(plan: StudyPlan, parts: StudyParts, name: str, arms: Sequence[str]) -> str:
    paces = ", ".join(f"{arm} {1000 * pace_of(plan, parts, name, arm):.1f}" for arm in arms)
    return f"{name}: CPU milliseconds of a step: {paces}"


CLAIMS = (
    Claim(
        "C2",
        "growth against fixed sizes and random growth",
        "a network that grows during its training ends as good as one that was large from the start, at less cost",
        f"test error: at least equal to fixed-large (margin {_MARGIN:g} %) with {SHARE} of its CPU seconds; better "
        "than fixed-small and random growth at equal steps AND equal seconds",
        partial(_parts_of, _ARMS),
        partial(_judge, _ARMS),
        partial(_later, _ARMS),
    ),
    Claim(
        "C4",
        "the two modes of growth",
        "closing weak options after every edit is better than growing first and choosing at the end",
        "test error: alternate better than prune_last in the paired interval, at equal steps and at equal seconds",
        partial(_parts_of, _MODES),
        partial(_judge, _MODES),
        partial(_later, _MODES),
    ),
)
