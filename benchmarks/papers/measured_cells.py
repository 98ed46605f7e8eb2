"""Read the measured latencies of the cells, and the windows of E6: ``measured_cells(plan, parts)``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

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


def types_of(arch: Mapping[str, Any]) -> _Types:
    """Return the types of the network that an architecture is."""
    return _TABLE.network_of(tuple(str(arch[f"{slot}.op"]) for slot in _TABLE.whole.slots))


def _networks(plan: StudyPlan) -> list[_Types]:
    """Return every network of the space once."""
    return list(dict.fromkeys(types_of(arch) for arch in tabular.all_members(space_of_plan(plan))))


def latency_parts(plan: StudyPlan) -> list[StudyPart]:
    """Return the sessions that measure all networks: a round for the windows and the loss, and one for each seed."""
    return _sessions(plan, 0, 1 + seeds_of(plan), 4 if plan.quick else 100)


def judging_parts(plan: StudyPlan) -> list[StudyPart]:
    """Return the sessions that confirm the prices of each seed and judge what is delivered."""
    return _sessions(plan, 1, 2 * _rounds_of(plan) * seeds_of(plan), 4 if plan.quick else 40)


def _rounds_of(plan: StudyPlan) -> int:
    """Return the rounds that confirm a price, or judge, by their median."""
    return 1 if plan.quick else 3


def _sessions(plan: StudyPlan, seed: int, rounds: int, blocks: int) -> list[StudyPart]:
    """Return a part for every few networks; ``seed`` makes another part of the same setting."""
    networks, found = _networks(plan), []
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
        found.append(part(latency_rounds, seed, setting, work=float((len(chunk) + 1) * rounds * blocks), timed=True))
    return found


Latencies = Mapping[_Types, float]  # network -> its latency


@dataclass(frozen=True)
class MeasuredCells:
    """Hold the latencies of all networks, and the windows of the study.

    first: of the round for the windows and the loss.
    quick: of the round of each seed, the prices of its derivation.
    careful: medians of the rounds of each seed that confirm a price.
    judged: medians of the rounds of each seed that judge.
    truth: medians of all rounds.
    """

    space: Space
    first: Latencies
    quick: Sequence[Latencies]
    careful: Sequence[Latencies]
    judged: Sequence[Latencies]
    truth: Latencies
    windows: Sequence[Window]

    @cached_property
    def members(self) -> list[Arch]:
        """Return all cells."""
        return tabular.all_members(self.space)

    def inside(self, window: Window, latencies: Latencies | None = None) -> list[Arch]:
        """Return the cells inside a window by ``latencies``; None: by the first round."""
        low, high = window
        known = self.first if latencies is None else latencies
        return [arch for arch in self.members if low <= known[types_of(arch)] <= high]

    def keeps(self, seed: int, arch: Arch, window: Window) -> bool:
        """Return whether a cell is inside a window in the rounds of a seed that judge."""
        return window[0] <= self.judged[seed][types_of(arch)] <= window[1]


def measured_cells(plan: StudyPlan, parts: StudyParts) -> MeasuredCells:
    """Return the latencies of all cells and the windows: 20 that are spread evenly from the fastest to the slowest.

    Without the parts of ``judging_parts`` there is only the first round.
    """
    early = _rounds(parts, latency_parts(plan))
    first = _named(plan, early[:1])
    linked = [latency for types, latency in first.items() if cells_table.connected(types)]
    count = 2 if plan.quick else 20
    lows = np.geomspace(min(linked), max(linked) / WIDTH, count) if len(linked) > 1 else [linked[0]]
    windows = [(round(float(low), 5), round(float(low) * WIDTH, 5)) for low in lows]
    if not all(each in parts for each in judging_parts(plan)):
        return MeasuredCells(space_of_plan(plan), first, [], [], [], first, windows)
    late, k = _rounds(parts, judging_parts(plan)), _rounds_of(plan)
    groups = [_named(plan, late[start : start + k]) for start in range(0, len(late), k)]
    quick = [_named(plan, [row]) for row in early[1:]]
    truth = _named(plan, [*early, *late])
    return MeasuredCells(space_of_plan(plan), first, quick, groups[::2], groups[1::2], truth, windows)


def _rounds(parts: StudyParts, wanted: Sequence[StudyPart]) -> list[NDArray[np.float64]]:
    """Return the latencies of all networks in every round."""
    results = [parts[each] for each in wanted]
    return [np.concatenate([result["shares"][k] for result in results]) for k in range(len(results[0]["shares"]))]


def _named(plan: StudyPlan, rounds: Sequence[NDArray[np.float64]]) -> Latencies:
    """Return the median of some rounds for each network."""
    return dict(zip(_networks(plan), map(float, np.median(rounds, axis=0)), strict=True))
