"""C3: the cells have equal parameters, growth ends where it says, and the verdicts count sequences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hnas.benchmarks.papers import rates, sequence_cells, two_input
from hnas.benchmarks.papers.claims import StudyPlan
from hnas.benchmarks.papers.sequence_cells import BOTH, CELLS, DARTS, GRU, JOINS, LSTM, PUBLISHED
from hnas.benchmarks.papers.statistics import FAILS, HOLDS
from hnas.cost.flops import parameters
from hnas.recipes import baseline

SHAPES = {"lorenz": (3, 3), "gated_recall": (2, 1), "sunspots": (1, 1), "elnino": (1, 1), "text": (92, 92)}


@pytest.mark.parametrize("name", SHAPES)
def test_all_cells_have_nearly_the_same_number_of_weights(name):
    found = sequence_cells.sizes_of(name, *SHAPES[name])
    assert set(found.sizes) == set(CELLS)
    assert found.apart < 0.03


@pytest.mark.parametrize("cell", CELLS)
def test_a_training_has_the_weights_that_were_counted(cell):
    setting = replace(sequence_cells.setting_of("gated_recall", cell, 8, 0.01, None, True), split="search")
    found = sequence_cells.cell_error(None, 0, setting)
    assert found["weights"] == sequence_cells.sizes_of("gated_recall", 2, 1).sizes[cell][1]
    assert found["error"] > 0
    if cell in JOINS:  # growth has reached the largest network
        assert (found["arch"]["width"], found["arch"]["nodes"]) == (setting.width, sequence_cells.NODES)
        joins = {kind for choice, kind in found["arch"].items() if choice.endswith(".join.op")}
        assert joins <= set(JOINS[cell])
    if cell == DARTS:
        assert [(found["arch"][f"nodes.{i}.f.op"], found["arch"][f"nodes.{i}.a.op"]) for i in range(8)] == [
            (kind, f"s{source}") for kind, source in PUBLISHED
        ]


@pytest.mark.parametrize("kind", [LSTM, GRU])
def test_the_plain_networks_have_the_weights_of_their_formula(kind):
    with torch.device("meta"):
        net = baseline._PlainRecurrent(kind, 3, 2, 7)
    assert parameters(net) == sequence_cells._weights(kind, 7, 3, 2)


def test_seed_and_rate_reach_the_plain_networks():
    setting = sequence_cells.setting_of("gated_recall", LSTM, 2, 0.01, None, True)
    asked = [(0, setting), (0, setting), (1, setting), (0, replace(setting, rate=0.02))]
    first, again, seed, rate = (sequence_cells.cell_error(None, *each)["error"] for each in asked)
    assert first == again
    assert len({first, seed, rate}) == 3


class Finished(dict):
    """Parts that are all finished, with errors of our choice."""

    def __init__(self, errors):
        self.errors = errors

    def __contains__(self, part):
        return True

    def __getitem__(self, part):
        name, cell = part.setting.data.name, part.setting.cell
        arch = {"nodes.0.join.op": "product"} if cell in JOINS else None
        return {"error": self.errors(name, cell) * (1 + 0.01 * part.seed), "weights": 9, "seconds": 1.0, "arch": arch}


def test_the_sequences_are_counted_on_which_it_beats_both(monkeypatch):
    names = ("lorenz", "gated_recall", "text")
    monkeypatch.setattr(two_input, "_QUICK", names)
    plan = replace(StudyPlan().smallest, seeds=5)

    def errors(name, cell):  # worse than GRU on the text
        rivals = {LSTM: 2.0, GRU: 0.5 if name == "text" else 2.0}
        return rivals.get(cell, 1.0)

    report = two_input._judge(plan, Finished(errors))
    count, *others = report.verdicts
    assert (count.interval.value, count.answer) == (2, FAILS)
    assert {v.question: v.answer for v in others}[f"text: {BOTH} < {GRU}"] == FAILS
    assert {v.question: v.answer for v in others}[f"text: {BOTH} < {LSTM}"] == HOLDS
    better = two_input._judge(plan, Finished(lambda _, cell: 2.0 if cell in (LSTM, GRU) else 1.0))
    assert (better.verdicts[0].interval.value, better.verdicts[0].answer) == (3, HOLDS)


def test_the_pilot_chooses_growth_first_and_prints_the_best_rate_first(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(rates, "CELLS", (BOTH, GRU))
    monkeypatch.setattr(rates, "JOINS", {BOTH: JOINS[BOTH]})
    seen = []
    errors = {0.003: 3.0, 0.01: 1.0, 0.03: 2.0, 0.1: 4.0, 0.2: 5.0, 0.3: 0.5}
    parts = rates.StudyParts
    monkeypatch.setattr(parts, "complete", lambda _, wanted, title: seen.extend(each.setting for each in wanted))
    monkeypatch.setattr(
        parts, "__getitem__", lambda _, part: {"error": errors[part.setting.rate], "arch": {"rate": part.setting.rate}}
    )
    assert rates.main(["C3", "--names", "lorenz", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"lorenz, {BOTH}, growth: sgd 0.3 0.5, adam 0.01 1, sgd 0.1 4",
        f"lorenz, {BOTH}: as grown 0.5, 0.01 1, 0.03 2, 0.003 3, 0.1 4",
        "lorenz, gru: 0.01 1, 0.03 2, 0.003 3, 0.1 4, 0.2 5",
    ]
    assert {setting.split for setting in seen} == {"search"}
    assert {str(setting.arch) for setting in seen} == {"None", "{'rate': 0.3}"}, "the cell that the best growth found"
    # A function of __main__ has another name in a process: its parts would not be found again.
    assert rates.cell_error.__module__ == "hnas.benchmarks.papers.sequence_cells"


def test_a_found_cell_is_trained_from_the_start():
    searched = sequence_cells.setting_of("gated_recall", BOTH, 8, 0.01, None, True)
    found = sequence_cells.cell_error(None, 0, searched)
    again = sequence_cells.cell_error(None, 0, replace(searched, arch=found["arch"]))
    assert again["arch"] == found["arch"]
    assert again["weights"] == found["weights"]
    assert again["error"] != found["error"]
