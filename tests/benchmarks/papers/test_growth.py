"""The studies of growth: a planted fault of an edit is seen, and every training has the settings that it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hnas.benchmarks.papers import exactness, growing, growth, growth_plan
from hnas.benchmarks.papers.claims import StudyPlan
from hnas.benchmarks.papers.exactness import ExactnessSetting
from hnas.benchmarks.papers.growing import GrowthPaceSetting, GrowthSetting
from hnas.benchmarks.papers.parts import Result, StudyParts
from hnas.benchmarks.papers.sequences import SequenceData, sequence_data
from hnas.benchmarks.papers.statistics import FAILS, HOLDS
from hnas.growth import edits, nodes

QUICK = StudyPlan().smallest
CELL = ExactnessSetting(
    data=SequenceData(name="random numbers", digest="of the seed"),
    space="recurrent_cell",
    arguments={"features": 2, "outputs": 2, "window": 6, "widths": [8, 12], "nodes": [1, 2, 3]},
    members=4,
    moves=2,
)
SETTING = GrowthSetting(
    data=sequence_data("lorenz", quick=True),
    growth="prune_last",
    widths=(8, 12),
    nodes=(1, 2, 3),
    steps=12,
    rate=0.1,
    stages=4,
)


# --- C1 ---------------------------------------------------------------------------------------------------------------


def answers(result: Result) -> dict[str, str]:
    return {kind: exactness._judge_kind(kind, [own]).answer for kind, own in result["kinds"].items()}


def test_every_edit_of_a_cell_holds():
    result = exactness.exactness(None, 0, CELL)
    assert answers(result) == dict.fromkeys(("nodes", "copy", "insert", "width", "type"), HOLDS)
    assert result["kinds"]["nodes"]["train"] == result["kinds"]["type"]["evaluation"] == 0.0
    assert result["kinds"]["copy"]["exact"] == 0.0


@pytest.mark.parametrize(
    ("place", "name", "kinds"),
    [
        (edits, "_close", {"width", "nodes"}),  # what leads from the new part to the old one keeps its weights
        (nodes, "_move", {"copy", "insert"}),  # a node keeps its place in name alone
    ],
)
def test_a_planted_fault_is_seen(place, name, kinds, monkeypatch):
    monkeypatch.setattr(place, name, lambda *_, **__: None)
    result = exactness.exactness(None, 0, CELL)
    assert {kind for kind, answer in answers(result).items() if answer == FAILS} == kinds
    assert all(result["kinds"][kind]["refused"] for kind in kinds)


# --- C2, C4 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["prune_last", "alternate", "random"])
def test_a_network_grows_by_as_many_edits_at_random(kind):
    result = growing.grown(None, 0, replace(SETTING, growth=kind))
    assert len(result["edits"]) == 3 or kind == "alternate"  # which may grow again what it has closed
    assert result["weights"] > growing.grown(None, 0, replace(SETTING, widths=(8,), nodes=(1,), stages=1))["weights"]
    assert result["test"] < 0
    assert result["search"] != result["test"]


def test_a_network_of_fixed_size_has_no_edit_and_all_its_weights():
    result = growing.grown(None, 0, replace(SETTING, widths=(12,), nodes=(3,), stages=1))
    assert result["edits"] == []
    assert (result["arch"]["width"], result["arch"]["nodes"]) == (12, 3)


def test_equal_seconds_are_those_of_the_largest_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A network whose steps take half as long makes twice as many steps."""
    parts = StudyParts(tmp_path, None)
    assert {axis for _, axis in growth._runs(QUICK, parts, "lorenz", growth._ARMS)} == {"steps"}
    paces = {"prune_last": 0.5, "random growth": 1.0, "fixed-large": 1.0, "fixed-small": 0.25, "alternate": 0.5}
    monkeypatch.setattr(growth, "pace_of", lambda _, __, ___, arm: paces[arm])
    monkeypatch.setattr(StudyParts, "__contains__", lambda *_: True)
    plan = replace(QUICK, passes=240)
    runs = growth._runs(plan, parts, "lorenz", growth._ARMS)
    steps = {key: listed[0].setting.steps for key, listed in runs.items()}
    assert steps["fixed-large", "steps"] == steps["prune_last", "steps"] == 120
    assert steps["prune_last", "seconds"] == 240
    assert steps["fixed-small", "seconds"] == 480
    assert steps["prune_last", "0.7 of the seconds"] == 168


def test_the_pace_of_every_arm_is_measured():
    wanted = growth_plan.pace_part(QUICK, "lorenz")
    assert wanted.timed
    assert isinstance(wanted.setting, GrowthPaceSetting)
    one = replace(wanted.setting, trainings={"fixed-small": replace(SETTING, widths=(8,), nodes=(1,), stages=1)})
    assert set(growing.growth_paces(None, 0, one)) == {"fixed-small"}
