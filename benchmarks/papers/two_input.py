"""C3: two-input cells, with and without the Hadamard product, against LSTM, GRU and DARTS' cell at equal parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from hnas.benchmarks.papers.claims import Claim, StudyPlan
from hnas.benchmarks.papers.parts import Result, StudyPart, StudyParts, part
from hnas.benchmarks.papers.report import ClaimVerdict, StudyReport, StudyTable, judge_difference
from hnas.benchmarks.papers.sequence_cells import (
    ADD,
    BOTH,
    CELLS,
    DARTS,
    GRU,
    JOINS,
    LSTM,
    PRODUCT,
    STEPS,
    CellSetting,
    cell_error,
    setting_of,
)
from hnas.benchmarks.papers.sequences import SEQUENCES, open_sequence
from hnas.benchmarks.papers.statistics import FAILS, HOLDS, Interval, mean_interval, paired

_QUICK, _QUICK_STEPS = ("lorenz", "gated_recall"), 8
_NECESSARY = "gated_recall"  # here no sum can stand for the product
_ENOUGH = 3  # tasks
_UNIT = "log error"
# Sequence -> cell -> optimiser and rate of growth; sequence -> cell -> rate of Adam from the start, or None: as grown.
# All are the best of a pilot with other seeds, on the search split (python -m hnas.benchmarks.papers.rates C3).
_Growth = tuple[Literal["sgd", "adam"], float]
_ADAM: _Growth = ("adam", 0.01)
_SGD: _Growth = ("sgd", 0.1)
_FAST_SGD: _Growth = ("sgd", 0.3)
_GROWTH: dict[str, dict[str, _Growth]] = {
    "lorenz": {BOTH: _FAST_SGD, ADD: _FAST_SGD, PRODUCT: _ADAM},
    "gated_recall": {BOTH: _ADAM, ADD: _ADAM, PRODUCT: _ADAM},
    "sunspots": {BOTH: _ADAM, ADD: _ADAM, PRODUCT: _ADAM},
    "elnino": {BOTH: _ADAM, ADD: _SGD, PRODUCT: _ADAM},
    "text": {BOTH: _ADAM, ADD: _ADAM, PRODUCT: _ADAM},
}
_RATES: dict[str, dict[str, float | None]] = {
    "lorenz": {BOTH: 0.1, ADD: 0.1, PRODUCT: 0.03, LSTM: 0.1, GRU: 0.1, DARTS: 0.1},
    "gated_recall": {BOTH: None, ADD: 0.03, PRODUCT: 0.03, LSTM: 0.2, GRU: 0.03, DARTS: 0.1},
    "sunspots": {BOTH: None, ADD: None, PRODUCT: None, LSTM: 0.03, GRU: 0.01, DARTS: 0.01},
    "elnino": {BOTH: None, ADD: 0.003, PRODUCT: None, LSTM: 0.01, GRU: 0.01, DARTS: 0.1},
    "text": {BOTH: 0.03, ADD: 0.03, PRODUCT: 0.03, LSTM: 0.1, GRU: 0.1, DARTS: 0.1},
}


def _names(plan: StudyPlan) -> tuple[str, ...]:
    return _QUICK if plan.quick else SEQUENCES


def _searches(plan: StudyPlan, name: str) -> dict[str, list[StudyPart]]:
    """Return cell -> the growths that find it on a sequence, one for each seed."""
    found = {}
    for cell, (optimiser, rate) in _GROWTH[name].items():
        setting = setting_of(name, cell, _steps(plan), rate, plan.images, plan.quick, optimiser)
        found[cell] = _of_seeds(plan, setting)
    return found


def _steps(plan: StudyPlan) -> int:
    return _QUICK_STEPS if plan.quick else STEPS


def _of_seeds(plan: StudyPlan, setting: CellSetting) -> list[StudyPart]:
    return [part(cell_error, seed, setting, work=setting.steps) for seed in range(plan.seeds)]


def _trainings(plan: StudyPlan, parts: StudyParts, name: str) -> dict[str, list[StudyPart]]:
    """Return cell -> its trainings on a sequence that are judged, one for each seed; of cells that are found."""
    searches, found = _searches(plan, name), {}
    for cell, rate in _RATES[name].items():
        if rate is None:
            found[cell] = searches[cell]
            continue
        setting = setting_of(name, cell, _steps(plan), rate, plan.images, plan.quick)
        if cell not in JOINS:
            found[cell] = _of_seeds(plan, setting)
        elif all(each in parts for each in searches[cell]):
            archs = [parts[each]["arch"] for each in searches[cell]]
            own = [replace(setting, arch=arch) for arch in archs]
            found[cell] = [part(cell_error, seed, each, work=each.steps) for seed, each in enumerate(own)]
    return found


def _parts(plan: StudyPlan, parts: StudyParts) -> list[StudyPart]:
    wanted = []
    for name in _names(plan):
        for listed in (*_searches(plan, name).values(), *_trainings(plan, parts, name).values()):
            wanted += listed
    return wanted


def _later(plan: StudyPlan, parts: StudyParts) -> dict[str, float]:
    """Return the work of the found cells that are not known yet."""
    missing = sum(len(CELLS) - len(_trainings(plan, parts, name)) for name in _names(plan))
    return {cell_error.__name__: float(missing * plan.seeds * STEPS)} if missing else {}


def _less(found: Mapping[str, Sequence[Result]], cell: str, rival: str) -> Interval:
    """Return by how much the logarithm of the error of a cell is below that of a rival, paired by seed."""
    errors = {each: np.log([result["error"] for result in found[each]]) for each in (cell, rival)}
    return paired(errors[rival], errors[cell])


def _judge(plan: StudyPlan, parts: StudyParts) -> StudyReport:
    """Compare the grown cell with each rival on every sequence; count the sequences where it beats LSTM and GRU."""
    verdicts, tables, won = list[ClaimVerdict](), [], 0
    for name in _names(plan):
        found = {cell: [parts[each] for each in listed] for cell, listed in _trainings(plan, parts, name).items()}
        own = [judge_difference(f"{name}: {BOTH} < {r}", _less(found, BOTH, r), _UNIT) for r in (LSTM, GRU)]
        won += all(verdict.answer == HOLDS for verdict in own)
        own += [judge_difference(f"{name}: {BOTH} < {r}", _less(found, BOTH, r), _UNIT) for r in (DARTS, ADD)]
        if name == _NECESSARY:
            own.append(judge_difference(f"{name}: {PRODUCT} < {ADD}", _less(found, PRODUCT, ADD), _UNIT))
        verdicts += own
        grown = {cell: [parts[each]["error"] for each in listed] for cell, listed in _searches(plan, name).items()}
        tables.append(_table(plan, name, found, grown))
    count = Interval(won, won, won, len(_names(plan)))
    question = f"{BOTH}: less error than LSTM and than GRU on at least {_ENOUGH} sequences"
    verdicts.insert(0, ClaimVerdict(question, HOLDS if won >= _ENOUGH else FAILS, count, "sequences"))
    scale = f"{', '.join(_names(plan))}; {_steps(plan)} steps of 32 windows; {plan.seeds} seeds"
    return StudyReport(scale, verdicts, tables, _notes())


def _table(
    plan: StudyPlan, name: str, found: Mapping[str, Sequence[Result]], grown: Mapping[str, Sequence[float]]
) -> StudyTable:
    """Return the errors of the cells on a sequence, and of its baselines.

    grown: cell -> errors at the end of growth, before it is trained from the start.
    """
    data = setting_of(name, BOTH, STEPS, _RATES[name][BOTH], plan.images, plan.quick).data
    task = open_sequence(data, 0, folder=plan.images)
    rows: list[list[object]] = []
    for cell, results in found.items():
        errors = [result["error"] for result in results]
        products = [_products(result) for result in results]
        joins = "-" if any(each is None for each in products) else " ".join(map(str, products))
        shown = mean_interval(errors).line(digits=4, sign="")
        seconds = float(np.mean([result["seconds"] for result in results]))
        rate = _RATES[name][cell] or "as grown"
        growth = " ".join(map(str, _GROWTH[name][cell])) if cell in JOINS else "-"
        before = mean_interval(grown[cell]).line(digits=4, sign="") if cell in grown else "-"
        rows.append([cell, shown, results[0]["weights"], rate, joins, round(seconds, 1), growth, before])
    baselines: Mapping[str, float] = task.baselines("test") if hasattr(task, "baselines") else {}
    rows += [[title, f"{-metric:.4f}", *("-",) * 6] for title, metric in baselines.items()]
    columns = ("cell", "error [95 %]", "weights", "rate", "nodes with a product", "CPU seconds", "growth", "as grown")
    return StudyTable(f"{name}: {task.score.name} on the test split", columns, rows)


def _products(result: Result) -> int | None:
    """Return how many nodes of a grown cell end with a product; None for another cell."""
    arch = result["arch"] or {}
    joins = [kind for choice, kind in arch.items() if choice.endswith(".join.op")]
    return joins.count("product") if joins else None


def _notes() -> list[str]:
    return [
        "the cells of joins are found by hnas.growth.loop.grow, and each ends with the largest of its space",
        "all cells are then trained from the start with Adam, or stay as they have grown",
        "of these two, and of the rates, the best was chosen in a pilot with other seeds on the search split",
        "darts is the published cell (found on Penn Treebank)",
        "the states of DARTS' nodes are highways, each of which holds a product of a gate and a difference",
        "the parameters of the cells on a sequence differ by at most 3 %",
    ]


CLAIMS = (
    Claim(
        "C3",
        "two-input cells against LSTM, GRU and DARTS' cell",
        "a recurrent cell of two-input nodes, with the Hadamard product, is better than LSTM and others",
        f"error on the test split at equal parameters and steps: less than LSTM AND than GRU in the"
        f" paired interval, on at least {_ENOUGH} of {len(SEQUENCES)} sequences; where the product is necessary,"
        " product < add",
        _parts,
        _judge,
        _later,
    ),
)
