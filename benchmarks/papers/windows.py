"""E6: searches inside windows of the measured latency, on cells that were all trained alone and measured.

The latency of a cell is a share of the latency of the largest cell. The first round of measurements gives prices. The
round of a seed judges what is delivered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
    kept_types,
    latency_parts,
    measured_cells,
    narrow,
    seeds_of,
)
from hnas.benchmarks.papers.parts import Result, StudyPart, StudyParts, part
from hnas.benchmarks.papers.report import ClaimVerdict, StudyReport, StudyTable, judge_difference
from hnas.benchmarks.papers.searches import SearchSetting, search_within
from hnas.benchmarks.papers.statistics import mean_interval, paired
from hnas.benchmarks.papers.supernets import space_of
from hnas.sampling.derive import derive, derive_inside
from hnas.sampling.draws import keep_types
from hnas.sampling.expected import Costs, CostTable, type_costs
from hnas.space import Arch

__all__ = ("CLAIMS", "searched_inside")  # a part is identified by the name of its run function

_RIVAL = "darts"
_RANDOM = "random inside"
_KEPT = 0.95  # of the windows
_MARGIN = 0.03  # of the ends of a window, which a derivation with a margin avoids


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
    table = type_costs(measured.space, measured.price)
    types = {slot: {kind: round(cost, 6) for kind, cost in own.items()} for slot, own in table.types.items()}
    return CostTable(round(table.base, 6), types)


def _e6_parts(plan: StudyPlan, parts: StudyParts) -> list[StudyPart]:
    """Return the measurements and the searches without a window; when these are known, the searches with one too."""
    wanted = latency_parts(plan)
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

_Choose = Callable[[int, Window, float], Arch | None]  # (seed, window, margin) -> what is delivered, or None


def _choices(plan: StudyPlan, parts: StudyParts, measured: MeasuredCells) -> dict[str, _Choose]:
    """Return variant -> what it delivers in a window."""
    table = _cost_table(measured)

    def derived(strategy: str, loss: bool) -> _Choose:
        def choose(seed: int, window: Window, margin: float) -> Arch | None:
            wanted = _search_part(plan, strategy, seed, table, window) if loss else _search_part(plan, strategy, seed)
            found = parts[wanted]["logits"]
            logits = {slot: torch.tensor(values) for slot, values in found.items()}
            derive(measured.space, logits)  # refuses logits that are not finite, which is no empty window
            for each in (margin, 0.0):
                try:
                    return derive_inside(measured.space, logits, table, measured.price, narrow(window, each)).arch
                except ValueError:  # nothing is inside the margins
                    continue
            return None

        return choose

    def drawn(seed: int, window: Window, margin: float) -> Arch | None:
        return Random(f"{_RANDOM}/{seed}/{window}").choice(measured.inside(window, margin) or measured.inside(window))

    found = {}
    for strategy in (OURS, _RIVAL):
        found[_in_loss(strategy)] = derived(strategy, True)
        found[_at_end(strategy)] = derived(strategy, False)
    return found | {_RANDOM: drawn}


def _in_loss(strategy: str) -> str:
    return f"{strategy}, latency in the loss"


def _at_end(strategy: str) -> str:
    return f"{strategy}, derivation alone"


@dataclass(frozen=True)
class _WindowFigures:
    """Hold the figures of a variant, one for each seed: share of windows kept, mean regret, windows without a network.

    A window without a network counts as not kept, and with the regret of the worst cell inside.
    """

    kept: Sequence[float]
    regret: Sequence[float]
    missing: Sequence[int]

    def row(self, name: str, margin: float) -> list[Any]:
        """Return a row of the table ``_COLUMNS``."""
        by_seed = " ".join(f"{100 * each:.0f}" for each in self.kept)
        shown = mean_interval(self.regret).line(100, sign="")
        return [name, f"{margin:.0%}", 100 * float(np.mean(self.kept)), by_seed, shown, sum(self.missing)]


_COLUMNS = ("search", "margin", "windows kept %", "of each seed", "regret inside, points [95 %]", "nothing found")


def _figures(plan: StudyPlan, measured: MeasuredCells, choose: _Choose, margin: float) -> _WindowFigures:
    known = truth_of(CELLS)
    kept, regret, missing = [], [], []
    windows = [window for window in measured.windows if measured.inside(window)]
    for seed in range(seeds_of(plan)):
        found = [choose(seed, window, margin) for window in windows]
        lost = []
        for arch, window in zip(found, windows, strict=True):
            real = [float(known.real[known.place[each]]) for each in measured.inside(window)]
            lost.append(max(real) - (min(real) if arch is None else float(known.real[known.place[arch]])))
        held = [arch is not None and measured.keeps(seed, arch, w) for arch, w in zip(found, windows, strict=True)]
        kept.append(float(np.mean(held)))
        regret.append(float(np.mean(lost)))
        missing.append(sum(arch is None for arch in found))
    return _WindowFigures(kept, regret, missing)


def _e6_judge(plan: StudyPlan, parts: StudyParts) -> StudyReport:
    """Judge the windows that are kept by a second measurement, and the regret inside them."""
    measured = measured_cells(plan, parts)
    choices = _choices(plan, parts, measured)
    figures = {
        margin: {name: _figures(plan, measured, choose, margin) for name, choose in choices.items()}
        for margin in (0.0, _MARGIN)
    }
    verdicts = []
    for margin, found in figures.items():
        for strategy in (OURS, _RIVAL):
            question = f"{_in_loss(strategy)}, margin {margin:.0%}: at least {_KEPT:.0%} of the windows kept"
            above = mean_interval([share - _KEPT for share in found[_in_loss(strategy)].kept])
            verdicts.append(judge_difference(question, above))
    verdicts += _regret_verdicts(figures[_MARGIN])
    rows = [own.row(name, margin) for margin, found in figures.items() for name, own in found.items()]
    tables = [StudyTable("windows of latency", _COLUMNS, rows), _noise_table(measured)]
    return StudyReport(scale_of(plan, (CELLS,)), verdicts, tables, _notes(plan, parts, measured))


def _regret_verdicts(found: Mapping[str, _WindowFigures]) -> list[ClaimVerdict]:
    pairs = [(_in_loss(OURS), other) for other in (_at_end(OURS), _RANDOM, _in_loss(_RIVAL))]
    pairs += [(_in_loss(_RIVAL), other) for other in (_at_end(_RIVAL), _RANDOM)]
    pairs += [(_at_end(strategy), _RANDOM) for strategy in (OURS, _RIVAL)]
    ask = f"less regret inside, margin {_MARGIN:.0%}"
    return [judge_difference(f"{ask}: {a} than {b}", paired(found[b].regret, found[a].regret)) for a, b in pairs]


def _noise_table(measured: MeasuredCells) -> StudyTable:
    """Return how far the latency of a network is from its price in each other round."""
    prices = np.array(list(measured.rounds[0].values()))
    rows = []
    for k, each in enumerate(measured.rounds[1:]):
        off = 100 * np.abs(np.array(list(each.values())) / prices - 1)
        rows.append([f"round {k + 1}", float(np.median(off)), float(np.quantile(off, 0.95)), float(off.max())])
    return StudyTable("distance from the price, %", ("round", "median", "95th percentile", "largest"), rows)


def _notes(plan: StudyPlan, parts: StudyParts, measured: MeasuredCells) -> list[str]:
    results = [parts[each] for each in latency_parts(plan)]
    largest = [ms for result in results for ms in result["largest_ms"]]
    empty = sum(not measured.inside(window) for window in measured.windows)
    ends = f"{measured.windows[0][0]:.3f} and {measured.windows[-1][1]:.3f}"
    windows = f"{len(measured.windows)} windows, each up to {WIDTH - 1:.0%} above its low end"
    medians = f"{min(largest):.4f} to {max(largest):.4f} ms"
    return [
        f"{windows}, between {ends} of the largest cell's latency; {empty} have no cell by the prices and are left out",
        f"{DEVICE}, one thread, one image, interleaved with the largest cell; its median was {medians}",
        f"a margin of {_MARGIN:.0%} is kept from both ends where a cell is inside it",
        "a window is kept if the round of the seed, in new processes, has the delivered cell inside",
        "all seeds have the prices of one round, so the intervals do not hold the noise of the prices",
        "the regret is that against the best cell of the table with a price inside the window",
    ]


CLAIMS = (
    Claim(
        "E6",
        "latency in the loss, and a window at the end",
        "a search with the expected latency in its loss ends in a good network inside the window",
        f"a second measurement keeps {_KEPT:.0%} of the windows AND less regret than by derivation alone and at random",
        _e6_parts,
        _e6_judge,
        _e6_later,
    ),
)
