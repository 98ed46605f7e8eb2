"""The table of seeds: finished runs are kept, a failed run is a line, and the worst seed is shown."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import pytest

from hnas.benchmarks.costs import seeds


@pytest.fixture
def ran(monkeypatch):
    """Replace the command: the speedup is 2 plus the seed, and tflite-cpu fails. Return the commands that ran.

    Each run takes 900 MB and 10 MB more for each seed.
    """
    commands = []

    def run(command, period, **options):
        commands.append(command)
        seed = int(command[command.index("--seed") + 1])
        if "tflite-cpu" in command:
            return SimpleNamespace(returncode=3, stdout="", stderr="a line\nlitert is missing\n"), 1
        rows = [
            {"verdict": "baseline"},
            {
                "verdict": "kept: the fastest",
                "precision": "int8",
                "accuracy": 0.93 - seed / 100,
                "speedup": {"value": 2.0 + seed, "low": 1.9 + seed, "high": 2.1 + seed, "kind": "measured"},
            },
        ]
        return SimpleNamespace(returncode=0, stdout=json.dumps({"rows": rows}), stderr=""), 900e6 + 1e7 * seed

    monkeypatch.setattr(seeds, "run_watched", run)
    return commands


def test_a_row_has_the_best_and_the_worst_seed(ran, tmp_path, capsys):
    arguments = ["--targets", "openvino-cpu", "--seeds", "3", "--out", str(tmp_path / "seeds.jsonl")]
    assert seeds.main(arguments) == 0
    found = capsys.readouterr()
    assert "| openvino-cpu | 3 | 4.00x | 2.00x | 0.50 | 91.00% to 93.00% | 0 | 0.92 GB |" in found.out
    assert "openvino-cpu seed 1: 3.00x [2.90, 3.10] int8, 92.00%" in found.err
    assert seeds.main(arguments) == 0
    assert capsys.readouterr().out == found.out
    assert len(ran) == 3  # nothing ran twice


def test_records_of_before_have_no_memory():
    record = {"target": "t", "seed": 0, "speedup": 2.0, "accuracy": 0.9, "seconds": 60.0}
    assert [*seeds.table([record])][-1].endswith("| 60 | not recorded |")
    assert [*seeds.table([record, {**record, "pss_mb": 990}])][-1].endswith("| 60 | 0.99 GB |")


def test_a_run_that_fails_is_a_line_and_the_exit_code(ran, tmp_path, capsys):
    assert seeds.main(["--targets", "tflite-cpu", "--seeds", "1", "--out", str(tmp_path / "seeds.jsonl")]) == 1
    assert "tflite-cpu seed 0: litert is missing" in capsys.readouterr().err
    assert seeds.main(["--targets", "tflite-cpu", "--seeds", "1", "--out", str(tmp_path / "seeds.jsonl")]) == 1
    assert len(ran) == 2  # a failed run is tried again


def test_the_record_of_cold_runs_keeps_the_limits_of_time_and_memory():
    with resources.as_file(resources.files("hnas.benchmarks") / "costs/results/cold.jsonl") as file:
        runs = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(runs) == 4
    assert all(run["largest_process_mb"] < 1000 and run["cache"] == "empty" for run in runs)
    assert [run["seconds"] < 60 for run in runs if "--target jetson" in run["command"]] == [True]


@pytest.mark.parametrize("name", ["seeds-before.jsonl", "seeds.jsonl"])
def test_the_page_states_the_recorded_seeds(name):
    with resources.as_file(resources.files("hnas.benchmarks") / "costs/results" / name) as file:
        records = [json.loads(line) for line in file.read_text().splitlines()]
    page = (Path(__file__).parents[3] / "docs/results.md").read_text("utf-8")
    rows = [row.rpartition("|")[0].rpartition("|")[0] for row in list(seeds.table(records))[2:]]  # without the memory
    assert rows
    assert all(f"{row}|" in page for row in rows)
