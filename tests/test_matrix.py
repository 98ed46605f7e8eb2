"""The command that installs both ends of the ranges: what it pins, what it prints, what it records."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests import matrix


def test_the_low_end_of_every_range_is_pinned() -> None:
    project = tomllib.loads((matrix.ROOT / "pyproject.toml").read_text())["project"]
    extras = {name: lines for name, lines in project["optional-dependencies"].items() if name != "dev"}
    wanted = [Requirement(line) for group in (project["dependencies"], *extras.values()) for line in group]
    pins = dict(line.split("==") for line in matrix.lowest())
    for each in wanted:
        assert each.name == "hnas" or each.specifier.contains(pins[each.name]), f"{each} has no lower bound"
    assert pins.keys() == matrix.ranges().keys()


def test_torch_is_not_pinned_to_one_version() -> None:
    torch = Requirement("torch" + matrix.ranges()["torch"]).specifier
    assert torch.contains("2.7.0")
    assert torch.contains("2.15.0")


def test_a_check_is_noted_with_its_seconds_or_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    column = matrix.Column("lowest, Python 3.11.7", sys.executable)
    matrix.note(column, "train", lambda: "")
    matrix.note(column, "doctor", lambda: "exit code 3: no torch")
    assert column.outcomes == {"train": "ok, 0 s", "doctor": "exit code 3: no torch"}
    assert "lowest, Python 3.11.7: doctor: exit code 3: no torch" in capsys.readouterr().err


def test_a_failed_command_gives_its_last_line(tmp_path: Path) -> None:
    code = "import sys; print('traceback', file=sys.stderr); sys.exit('torch is too old')"
    assert matrix.run(sys.executable, "-c", code, folder=tmp_path)[0] == "exit code 1: torch is too old"
    assert matrix.run(sys.executable, "-c", "print(1)", folder=tmp_path) == ("", "1\n")


def test_the_table_has_a_column_for_each_environment() -> None:
    low = matrix.Column("lowest, Python 3.11.7", "", {"torch": "2.7.0"}, {"train": "ok, 9 s"})
    new = matrix.Column("newest, Python 3.13.0", "", {"torch": "2.15.0"}, {"train": "exit code 70: no"})
    assert matrix.table([low, new]).splitlines() == [
        "| | lowest, Python 3.11.7 | newest, Python 3.13.0 |",
        "|---|---|---|",
        "| torch | 2.7.0 | 2.15.0 |",
        "| train | ok, 9 s | exit code 70: no |",
    ]


def test_the_lowest_and_the_newest_version_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "TESTED", tmp_path / "tested.json")
    low = matrix.Column("lowest, Python 3.11.7", "", {"torch": "2.7.0+cu124"})
    matrix.write([matrix.Column("newest, Python 3.13.0", "", {"torch": "2.15.0", "numpy": "2.4.6"}), low])
    assert json.loads(matrix.TESTED.read_text()) == {
        "Python": ["3.11.7", "3.13.0"],
        "numpy": ["2.4.6", "2.4.6"],
        "torch": ["2.7.0", "2.15.0"],
    }


def test_the_document_has_what_was_run_and_names_the_rest() -> None:
    text = (matrix.ROOT / "docs" / "install.md").read_text()
    rows = re.findall(r"^\| ([\w-]+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    assert {name: [low, high] for name, low, high in rows} == json.loads(matrix.TESTED.read_text())
    project = tomllib.loads((matrix.ROOT / "pyproject.toml").read_text())["project"]
    needed, waiting = [*map(Requirement, project["dependencies"])], [*matrix.EXTRAS.split(",")]
    while waiting:
        found = [*map(Requirement, project["optional-dependencies"][waiting.pop()])]
        waiting += [extra for each in found for extra in each.extras if each.name == "hnas"]
        needed += [each for each in found if each.name != "hnas"]
    rest = text.partition("What was not run at both ends:\n")[2].partition("\n`constraints.txt`")[0]
    for each in needed:
        assert (each.name in {name for name, *_ in rows}) != (f"`{each.name}`" in rest), each.name


def test_make_matrix_passes_the_interpreters_on() -> None:
    done = subprocess.run(
        ["make", "--dry-run", "matrix", "PYTHONS=python3.11 python3.13", "ARGS=--end lowest"],
        cwd=matrix.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "python -m tests.matrix python3.11 python3.13 --end lowest" in done.stdout
