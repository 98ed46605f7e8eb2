"""E6: searches inside windows of the measured latency, on cells that were all trained alone and measured.

The latency of a cell is a share of the latency of the largest cell. Each seed has measurements of its own: a quick one
and a careful one for its derivation, and one that judges what is delivered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from hnas.benchmarks.papers.claims import Claim, StudyPlan
from hnas.benchmarks.papers.data import StudyData
from hnas.benchmarks.papers.family_plan import CELLS, OURS, scale_of, setting_of, truth_of
from hnas.benchmarks.papers.measured_cells import (
    DEVICE,
    WIDTH,
    MeasuredCells,
    Window,
    judging_parts,
    kept_types,
    latency_parts,
    measured_cells,
    seeds_of,
    types_of,
)
from hnas.benchmarks.papers.parts import Result, StudyPart, StudyParts, part
from hnas.benchmarks.papers.report import ClaimVerdict, StudyReport, StudyTable, judge_difference
from hnas.benchmarks.papers.searches import SearchSetting, search_within
from hnas.benchmarks.papers.statistics import mean_interval, paired
from hnas.benchmarks.papers.supernets import space_of
from hnas.sampling.derive import NoneInside, derive_inside, derive_measured
from hnas.sampling.draws import keep_types, slot_types
from hnas.sampling.expected import Costs, CostTable, type_costs
from hnas.space import Arch

__all__ = ("CLAIMS", "searched_inside")  # a part is identified by the name of its run function

_RIVAL = "darts"
_RANDOM = "random logits"
_KEPT = 0.95  # of the windows


@dataclass(frozen=True, kw_only=True)
class _InsideSetting:
    """The setting of a search whose loss may hold the expected latency.

    kept: slot -> the types that are searched.
    base, types: the costs of the types, as a ``CostTable`` has them.
    window: lowest and highest latency, a share of the largest cell's; None: no latency in the loss.
    """

    search: SearchSetting
    kept: Mapping[str, Sequence[str]]
    base: float = 0.0
    types: Costs | None = None
    window: Window | None = None

    @property
    def data(self) -> StudyData:
        """Return the images of the search."""
        return self.search.data


def searched_inside(images: Path | None, seed: int, setting: _InsideSetting) -> Result:
    """Search cells, with or without the latency in the loss; return the logits, steps, passes and CPU seconds."""
    search = setting.search
    space = keep_types(space_of(search.space, search.arguments), setting.kept)
    if setting.window is not None:
        cost = {"latency": CostTable(setting.base, setting.types or {}), "limit": tuple(setting.window)}
        search = replace(search, options={**search.options, **cost})
    found = search_within(images, seed, search, space)
    return {name: found[name] for name in ("logits", "steps", "passes", "seconds")}


# --- searches ---------------------------------------------------------------------------------------------------------


def _search_part(
    plan: StudyPlan, strategy: str, seed: int, table: CostTable | None = None, window: Window | None = None
) -> StudyPart:
    """Return one search; without a window the loss has no latency."""
    search = setting_of(plan, CELLS, strategy)
    setting = _InsideSetting(search=search, kept=kept_types(plan))
    if table is not None:
        setting = replace(setting, base=table.base, types=table.types, window=window)
    return part(searched_inside, seed, setting, work=plan.passes)


def _cost_table(measured: MeasuredCells) -> CostTable:
    """Return the costs of the types by the prices."""
    table = type_costs(measured.space, lambda arch: measured.first[types_of(arch)])
    types = {slot: {kind: round(cost, 6) for kind, cost in own.items()} for slot, own in table.types.items()}
    return CostTable(round(table.base, 6), types)


def _e6_parts(plan: StudyPlan, parts: StudyParts) -> list[StudyPart]:
    """Return the measurements and the searches without a window; when these are known, the searches with one too."""
    wanted = [*latency_parts(plan), *judging_parts(plan)]
    wanted += [_search_part(plan, strategy, seed) for strategy in (OURS, _RIVAL) for seed in range(seeds_of(plan))]
    if not all(each in parts for each in latency_parts(plan)):
        return wanted
    measured = measured_cells(plan, parts)
    table = _cost_table(measured)
    return wanted + [
        _search_part(plan, strategy, seed, table, window)
        for seed in range(seeds_of(plan))
        for strategy in (OURS, _RIVAL)
        for window in measured.windows
        if measured.inside(window)
    ]


def _e6_later(plan: StudyPlan, parts: StudyParts) -> dict[str, float]:
    """Return the work of the searches with windows, while these are not known."""
    if all(each in parts for each in latency_parts(plan)):
        return {}
    return {"searched_inside": float(plan.passes * plan.seeds * 2 * 20)}


# --- judging ----------------------------------------------------------------------------------------------------------

_Logits = Callable[[int, Window], dict[str, torch.Tensor]]  # of a seed, for a window
_Derivation = Callable[[MeasuredCells, int, dict[str, torch.Tensor], CostTable, Window], Arch]


def _by_first_price(
    measured: MeasuredCells, seed: int, logits: dict[str, torch.Tensor], table: CostTable, window: Window
) -> Arch:
    """Derive a cell by one quick measurement of each cell that is tried."""
    quick = measured.quick[seed]
    return derive_inside(measured.space, logits, table, lambda arch: quick[types_of(arch)], window).arch


def _as_shipped(
    measured: MeasuredCells, seed: int, logits: dict[str, torch.Tensor], table: CostTable, window: Window
) -> Arch:
    """Derive a cell as the product does: a quick price inside is confirmed, and keeps a margin."""
    quick, careful = measured.quick[seed], measured.careful[seed]
    prices = (lambda arch: quick[types_of(arch)]), (lambda arch: careful[types_of(arch)])
    return derive_measured(measured.space, logits, table, *prices, window).arch


_DERIVATIONS: dict[str, _Derivation] = {"first price": _by_first_price, "as shipped": _as_shipped}
_SHIPPED = "as shipped"


def _searches(plan: StudyPlan, parts: StudyParts, measured: MeasuredCells) -> dict[str, _Logits]:
    """Return the name of a search -> its logits."""
    table = _cost_table(measured)

    def searched(strategy: str, loss: bool) -> _Logits:
        def logits(seed: int, window: Window) -> dict[str, torch.Tensor]:
            wanted = _search_part(plan, strategy, seed, table, window) if loss else _search_part(plan, strategy, seed)
            return {slot: torch.tensor(values) for slot, values in parts[wanted]["logits"].items()}

        return logits

    def drawn(seed: int, window: Window) -> dict[str, torch.Tensor]:
        rng, space = Random(f"{_RANDOM}/{seed}/{window}"), measured.space
        return {s: torch.tensor([rng.gauss(0, 1) for _ in slot_types(space, s)]) for s in space.slots}

    found: dict[str, _Logits] = {}
    for strategy in (OURS, _RIVAL):
        found[_in_loss(strategy)] = searched(strategy, True)
        found[_at_end(strategy)] = searched(strategy, False)
    return found | {_RANDOM: drawn}


def _in_loss(strategy: str) -> str:
    return f"{strategy}, latency in the loss"


def _at_end(strategy: str) -> str:
    return f"{strategy}, derivation alone"


@dataclass(frozen=True)
class _WindowFigures:
    """Hold the figures of a search and a derivation, one for each seed.

    kept: share of the windows that the rounds that judge keep.
    regret: mean over the windows, against the best cell inside by the median of all rounds. Nothing delivered, or a
        cell that is outside by that median, has the regret of the worst cell inside.
    missing: windows in which nothing was delivered; they are not kept.
    """

    kept: Sequence[float]
    regret: Sequence[float]
    missing: Sequence[int]

    def row(self, search: str, derivation: str) -> list[Any]:
        """Return a row of the table ``_COLUMNS``."""
        by_seed = " ".join(f"{100 * each:.0f}" for each in self.kept)
        shown = mean_interval(self.regret).line(100, sign="")
        return [search, derivation, 100 * float(np.mean(self.kept)), by_seed, shown, sum(self.missing)]


_COLUMNS = ("search", "derivation", "windows kept %", "of each seed", "regret inside, points [95 %]", "nothing found")


def _figures(plan: StudyPlan, measured: MeasuredCells, deliver: Callable[[int, Window], Arch | None]) -> _WindowFigures:
    known = truth_of(CELLS)
    kept, regret, missing = [], [], []
    inside = {window: measured.inside(window, measured.truth) for window in measured.windows if measured.inside(window)}
    for seed in range(seeds_of(plan)):
        held, lost = [], []
        for window in (each for each, cells in inside.items() if cells):
            arch = deliver(seed, window)
            real = {each: float(known.real[known.place[each]]) for each in inside[window]}
            lost.append(
                max(real.values()) - (min(real.values()) if arch is None else real.get(arch, min(real.values())))
            )
            held.append(None if arch is None else measured.keeps(seed, arch, window))
        kept.append(float(np.mean([bool(each) for each in held])))
        regret.append(float(np.mean(lost)))
        missing.append(held.count(None))
    return _WindowFigures(kept, regret, missing)


def _e6_judge(plan: StudyPlan, parts: StudyParts) -> StudyReport:
    """Judge the windows that are kept by another measurement, and the regret inside them."""
    measured = measured_cells(plan, parts)
    table = _cost_table(measured)

    def deliver(logits: _Logits, derivation: _Derivation, seed: int, window: Window) -> Arch | None:
        with suppress(NoneInside):
            return derivation(measured, seed, logits(seed, window), table, window)
        return None

    figures = {
        name: {
            search: _figures(plan, measured, partial(deliver, logits, derivation))
            for search, logits in _searches(plan, parts, measured).items()
        }
        for name, derivation in _DERIVATIONS.items()
    }
    verdicts = []
    for name, found in figures.items():
        for strategy in (OURS, _RIVAL):
            question = f"{_in_loss(strategy)}, {name}: at least {_KEPT:.0%} of the windows kept"
            above = mean_interval([share - _KEPT for share in found[_in_loss(strategy)].kept])
            verdicts.append(judge_difference(question, above))
    verdicts += _regret_verdicts(figures[_SHIPPED])
    rows = [own.row(search, name) for name, found in figures.items() for search, own in found.items()]
    tables = [StudyTable("windows of latency", _COLUMNS, rows), _noise_table(measured)]
    return StudyReport(scale_of(plan, (CELLS,)), verdicts, tables, _notes(plan, parts, measured))


def _regret_verdicts(found: Mapping[str, _WindowFigures]) -> list[ClaimVerdict]:
    pairs = [(_in_loss(OURS), other) for other in (_at_end(OURS), _RANDOM, _in_loss(_RIVAL))]
    pairs += [(_in_loss(_RIVAL), other) for other in (_at_end(_RIVAL), _RANDOM)]
    pairs += [(_at_end(strategy), _RANDOM) for strategy in (OURS, _RIVAL)]
    ask = f"less regret inside, {_SHIPPED}"
    return [judge_difference(f"{ask}: {a} than {b}", paired(found[b].regret, found[a].regret)) for a, b in pairs]


def _noise_table(measured: MeasuredCells) -> StudyTable:
    """Return how far the measurements of a network are from its median over all rounds."""
    truth, rows = np.array(list(measured.truth.values())), []
    for name, seeds in (("quick", measured.quick), ("careful", measured.careful), ("judges", measured.judged)):
        off = 100 * np.abs(np.array([list(each.values()) for each in seeds]) / truth - 1)
        rows.append([name, float(np.median(off)), float(np.quantile(off, 0.95)), float(off.max())])
    columns = ("measurement", "median", "95th percentile", "largest")
    return StudyTable("distance from the median of all rounds, %", columns, rows)


def _notes(plan: StudyPlan, parts: StudyParts, measured: MeasuredCells) -> list[str]:
    results = [parts[each] for each in (*latency_parts(plan), *judging_parts(plan))]
    largest = [ms for result in results for ms in result["largest_ms"]]
    empty = sum(not measured.inside(window) for window in measured.windows)
    ends = f"{measured.windows[0][0]:.3f} and {measured.windows[-1][1]:.3f}"
    windows = f"{len(measured.windows)} windows, each up to {WIDTH - 1:.0%} above its low end"
    medians = f"{min(largest):.4f} to {max(largest):.4f} ms"
    return [
        f"{windows}, between {ends} of the largest cell's latency; {empty} have no cell by the prices and are left out",
        f"{DEVICE}, one thread, one image, interleaved with the largest cell; its median was {medians}",
        "first price: a cell whose quick price is inside; as shipped: inside by the careful price too, and by a margin",
        "quick: one round; careful, and what judges: the median of three rounds; each round and seed has new processes",
        "windows and costs in the loss come from one more round, the same for all seeds",
    ]


CLAIMS = (
    Claim(
        "E6",
        "latency in the loss, and a window at the end",
        "a search with the expected latency in its loss ends in a good network inside the window",
        f"another measurement keeps {_KEPT:.0%} of the windows AND less regret than by derivation alone and at random",
        _e6_parts,
        _e6_judge,
        _e6_later,
    ),
)
