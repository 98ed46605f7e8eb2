"""E6: a window is kept by a second measurement, and the window reaches the loss. D3: the control by weights."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed; pip install 'hnas[papers]'")

from hnas.benchmarks.papers import hosts, measured_cells, windows
from hnas.benchmarks.papers.claims import StudyPlan
from hnas.benchmarks.papers.supernets import space_of
from hnas.sampling.draws import keep_types

PLAN = StudyPlan().smallest
SPACE = measured_cells.space_of_plan(PLAN)
ONE, THREE = (("nor_conv_3x3", "skip_connect", kind) for kind in ("nor_conv_1x1", "nor_conv_3x3"))
PRICES = {ONE: 0.8, THREE: 1.0}


def figures(window: tuple[float, float], judged: dict, margin: float = 0.0) -> windows._WindowFigures:
    """Deliver the slowest cell inside, which is judged by other latencies than it was priced by."""
    measured = measured_cells.MeasuredCells(SPACE, [PRICES, judged], [window])

    def slowest(_: int, window: tuple[float, float], margin: float):
        return max(measured.inside(window, margin), key=measured.price, default=None)

    return windows._figures(PLAN, measured, slowest, margin)


def test_a_window_is_kept_by_the_second_measurement_and_not_by_the_price():
    assert figures((0.7, 1.05), PRICES).kept == [1.0]
    assert figures((0.7, 1.05), PRICES | {THREE: 1.06}).kept == [0.0]
    assert figures((0.7, 1.05), PRICES | {ONE: 1.06}).kept == [1.0], "the other cell was not delivered"


def test_a_margin_avoids_the_ends_of_a_window():
    off = {ONE: 0.81, THREE: 1.06}
    assert figures((0.7, 1.05), off, 0.0).kept == [0.0]
    assert figures((0.7, 1.05), off, 0.1).kept == [1.0], "the largest price is now 0.945"


def test_nothing_found_is_not_kept_and_has_the_regret_of_the_worst_cell():
    none = figures((0.7, 1.05), PRICES, 0.3)
    assert (none.kept, none.missing) == ([0.0], [1])
    assert none.regret[0] >= max(figures((0.7, 1.05), PRICES, m).regret[0] for m in (0.0, 0.1))


@pytest.mark.parametrize(("window", "wanted"), [((0.01, 0.02), 0), ((8.0, 9.0), 1)])
def test_both_ends_of_the_window_of_a_search_are_in_its_loss(window, wanted):
    """The first window is below all cells, the second above all of them; without it the cheap type would win."""
    table = windows._cost_table(measured_cells.MeasuredCells(SPACE, [PRICES], []))
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
