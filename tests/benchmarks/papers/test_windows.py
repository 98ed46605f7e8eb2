"""E6: a window is kept by another measurement, and the window reaches the loss. D3: the control by weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("sklearn", reason="scikit-learn is not installed; pip install 'hnas[papers]'")

from hnas.benchmarks.papers import hosts, measured_cells, windows
from hnas.benchmarks.papers.claims import StudyPlan
from hnas.benchmarks.papers.supernets import space_of
from hnas.sampling.derive import NoneInside
from hnas.sampling.draws import keep_types, slot_types

PLAN = StudyPlan().smallest
SPACE = measured_cells.space_of_plan(PLAN)
ONE, THREE = (("nor_conv_3x3", "skip_connect", kind) for kind in ("nor_conv_1x1", "nor_conv_3x3"))
PRICES = {ONE: 0.8, THREE: 1.0}


def cells(window: tuple[float, float], quick: dict = PRICES, careful: dict = PRICES, judged: dict = PRICES):
    """Return measurements of two cells by one seed; their truth is ``PRICES``."""
    return measured_cells.MeasuredCells(SPACE, PRICES, [quick], [careful], [judged], PRICES, [window])


def figures(measured: measured_cells.MeasuredCells, arch) -> windows._WindowFigures:
    return windows._figures(PLAN, measured, lambda *_: arch)


def member(types: tuple[str, ...]):
    return next(arch for arch in cells((0, 9)).members if measured_cells.types_of(arch) == types)


def test_a_window_is_kept_by_the_measurement_that_judges_and_by_no_other():
    window, off = (0.7, 1.05), PRICES | {THREE: 1.06}
    assert figures(cells(window), member(THREE)).kept == [1.0]
    assert figures(cells(window, judged=off), member(THREE)).kept == [0.0]
    assert figures(cells(window, judged=off), member(ONE)).kept == [1.0], "the other cell was not delivered"
    assert figures(cells(window, quick=off, careful=off), member(THREE)).kept == [1.0]


def delivered(name: str, measured: measured_cells.MeasuredCells):
    """Return the types that a derivation delivers whose logits prefer the slow cell."""
    logits = {slot: torch.zeros(len(slot_types(SPACE, slot))) for slot in SPACE.slots}
    logits["edges.1_2"] = torch.tensor([0.0, 1.0])
    table = windows._cost_table(measured)
    found = windows._DERIVATIONS[name](measured, 0, logits, table, measured.windows[0])
    return measured_cells.types_of(found)


def test_the_shipped_derivation_confirms_a_price_and_keeps_a_margin():
    window = (0.7, 1.02)
    assert delivered("first price", cells(window)) == THREE
    assert delivered("as shipped", cells(window)) == ONE, "1.0 is nearer than 3 % to 1.02"
    assert delivered("as shipped", cells((0.7, 1.1))) == THREE
    assert delivered("as shipped", cells((0.7, 1.1), careful=PRICES | {THREE: 1.2})) == ONE
    with pytest.raises(NoneInside):
        delivered("first price", cells((0.1, 0.2)))


def test_nothing_delivered_or_a_cell_outside_has_the_regret_of_the_worst_cell_inside():
    both, one = cells((0.7, 1.05)), cells((0.7, 0.9))
    none = figures(both, None)
    assert (none.kept, none.missing) == ([0.0], [1])
    assert none.regret == [max(figures(both, member(types)).regret[0] for types in (ONE, THREE))]
    assert none.regret[0] > 0
    assert figures(one, member(THREE)).regret == figures(one, None).regret == [0.0], "there is one cell inside"


@pytest.mark.parametrize(("window", "wanted"), [((0.01, 0.02), 0), ((8.0, 9.0), 1)])
def test_both_ends_of_the_window_of_a_search_are_in_its_loss(window, wanted):
    """The first window is below all cells, the second above all of them; without it the cheap type would win."""
    table = windows._cost_table(cells((0.0, 9.0)))
    part = windows._search_part(replace(PLAN, passes=40), "darts", 0, table, window)
    heavy = replace(part.setting.search, options={"weight": 1000.0, "warmup": 0.0}, rate=0.1)
    found = windows.searched_inside(None, 0, replace(part.setting, search=heavy))["logits"]["edges.1_2"]
    assert found[wanted] > 0 > found[1 - wanted]


def test_the_control_by_weights_leaves_as_many_operations_as_the_angle_does():
    space = space_of("tabular_digits", {})
    left = hosts._largest_operations(space)
    kept = {slot: tuple(left.choices[f"{slot}.op"].options) for slot in space.slots}
    assert sum(map(len, kept.values())) == 20 - hosts._DROP * 3
    assert left == keep_types(space, kept)
    assert {kind for own in kept.values() for kind in own} == {"conv3", "dw5"}
