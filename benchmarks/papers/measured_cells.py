"""Read the measured latencies of the cells, and the windows of E6: ``measured_cells(plan, parts)``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hnas.benchmarks.papers import cells_table, tabular
from hnas.benchmarks.papers.cell_latency import RoundsSetting, latency_rounds
from hnas.benchmarks.papers.claims import StudyPlan
from hnas.benchmarks.papers.parts import StudyPart, StudyParts, part
from hnas.benchmarks.papers.tabular_plan import digits_data
from hnas.sampling.draws import keep_types
from hnas.space import Arch, Space

DEVICE = "tflite-cpu"  # a cell is built in it in a fifth of the time that ONNX Runtime takes
WIDTH = 1.15  # the highest latency of a window by its lowest
_TOGETHER = 14  # networks that are measured in one session with the largest
_TABLE = cells_table.TABLE
_QUICK = {
    "edges.0_1": ("nor_conv_3x3",),
    "edges.0_2": ("skip_connect",),
    "edges.1_2": ("nor_conv_1x1", "nor_conv_3x3"),
}

_Types = tuple[str, ...]
Window = tuple[float, float]


def seeds_of(plan: StudyPlan) -> int:
    """Return the seeds of E6: one in a quick run."""
    return 1 if plan.quick else plan.seeds


def kept_types(plan: StudyPlan) -> dict[str, _Types]:
    """Return slot -> its types; a quick run has two cells."""
    if plan.quick:
        return _QUICK
    space = _TABLE.whole
    return {slot: tuple(map(str, space.choices[f"{slot}.op"].options)) for slot in space.slots}


def space_of_plan(plan: StudyPlan) -> Space:
    """Return the cells of E6."""
    return keep_types(_TABLE.whole, kept_types(plan))


def _types_of(arch: Mapping[str, Any]) -> _Types:
    """Return the types of the network that an architecture is."""
    return _TABLE.network_of(tuple(str(arch[f"{slot}.op"]) for slot in _TABLE.whole.slots))


def _networks(plan: StudyPlan) -> list[_Types]:
    """Return every network of the space once."""
    return list(dict.fromkeys(_types_of(arch) for arch in tabular.all_members(space_of_plan(plan))))


def latency_parts(plan: StudyPlan) -> list[StudyPart]:
    """Return the sessions that measure all networks: one round for the prices, and one to judge each seed."""
    networks = _networks(plan)
    rounds, blocks = (2, 4) if plan.quick else (1 + seeds_of(plan), 100)
    found = []
    for start in range(0, len(networks), _TOGETHER):
        chunk = [list(types) for types in networks[start : start + _TOGETHER]]
        setting = RoundsSetting(
            data=digits_data(plan),
            space=_TABLE.space,
            arguments=_TABLE.arguments,
            networks=chunk,
            device=DEVICE,
            rounds=rounds,
            blocks=blocks,
        )
        found.append(part(latency_rounds, 0, setting, work=len(chunk) + 1, timed=True))
    return found


@dataclass(frozen=True)
class MeasuredCells:
    """Hold the latencies of every round, and the windows of the study.

    rounds: network -> its latency, for each round; the first has the prices.
    """

    space: Space
    rounds: Sequence[Mapping[_Types, float]]
    windows: Sequence[Window]

    @cached_property
    def _members(self) -> list[Arch]:
        return tabular.all_members(self.space)

    def price(self, arch: Mapping[str, Any]) -> float:
        """Return the latency in the first round."""
        return self.rounds[0][_types_of(arch)]

    def inside(self, window: Window, margin: float = 0.0) -> list[Arch]:
        """Return the cells whose price is inside a window without its margins."""
        low, high = narrow(window, margin)
        return [arch for arch in self._members if low <= self.price(arch) <= high]

    def keeps(self, seed: int, arch: Arch, window: Window) -> bool:
        """Return whether a cell is inside a window in the round of a seed."""
        return window[0] <= self.rounds[1 + seed][_types_of(arch)] <= window[1]


def measured_cells(plan: StudyPlan, parts: StudyParts) -> MeasuredCells:
    """Return the latencies of all cells and the windows: 20 that are spread evenly from the fastest to the slowest."""
    results = [parts[each] for each in latency_parts(plan)]
    rows = [np.concatenate([result["shares"][k] for result in results]) for k in range(len(results[0]["shares"]))]
    rounds = [dict(zip(_networks(plan), map(float, row), strict=True)) for row in rows]
    linked = [latency for types, latency in rounds[0].items() if cells_table.connected(types)]
    count = 2 if plan.quick else 20
    lows = np.geomspace(min(linked), max(linked) / WIDTH, count) if len(linked) > 1 else [linked[0]]
    windows = [(round(float(low), 5), round(float(low) * WIDTH, 5)) for low in lows]
    return MeasuredCells(space_of_plan(plan), rounds, windows)


def narrow(window: Window, margin: float) -> Window:
    """Return a window without its margins."""
    return window[0] * (1 + margin), window[1] * (1 - margin)
