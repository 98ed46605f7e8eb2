"""The folder of a run: locking, resuming, and what is removed: the numbered cases of ``open_run``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hnas.deployment import folder
from hnas.deployment.folder import Unreachable, open_run, working_folder
from hnas.deployment.options import SearchOptions
from hnas.deployment.plan import Plan, resolve
from hnas.export.bundle.manifest import Machine
from hnas.journal import Journal
from tests.hnas.photos import tree

SOURCE: Any = SimpleNamespace(digest="weights", digests={"test": "images"})


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return resolve(SearchOptions("raspberry-pi-5", max_size="2KB", out=tmp_path / "run"))


@pytest.fixture
def killed(plan: Plan) -> Path:
    """The folder of a run that was killed after two calls, with its half-written files."""
    with open_run(plan, SOURCE, False) as journal:
        journal.call("a", lambda: 1)
        journal.call("b", lambda: 2)
    for path in ("artifacts/0123/fp32/model", "artifacts/0123/.int8.x7/model", ".bundle.a1/README.md"):
        (plan.out / path).parent.mkdir(parents=True)
        (plan.out / path).write_text("half")
    (plan.out / ".plan.json.4711").write_text("{")
    (plan.out / ".lock").write_text("4711\n")
    return plan.out


def _in_vain(journal: Journal, key: str) -> None:
    journal.call(key, lambda: 0)
    raise Unreachable("too small")


def test_case_1_two_runs_in_one_folder_are_one_line_for_the_second(plan: Plan) -> None:
    with open_run(plan, SOURCE, False) as journal:
        journal.call("a", lambda: 1)
        for resume in (False, True):
            with pytest.raises(ValueError, match="another run is using"), open_run(plan, SOURCE, resume):
                pytest.fail("it is held")
    with open_run(plan, SOURCE, True) as journal:
        assert journal.entries == {"a": 1}


def test_case_2_what_was_killed_is_continued_and_cleared_of_what_was_half_written(plan: Plan, killed: Path) -> None:
    with open_run(plan, SOURCE, True) as journal:
        assert journal.entries == {"a": 1, "b": 2}
        assert tree(killed) == {
            *("plan.json", "journal.jsonl", ".lock"),
            *("artifacts", "artifacts/0123", "artifacts/0123/fp32", "artifacts/0123/fp32/model"),
        }
    assert ".lock" not in tree(killed)


def test_case_2_a_run_is_not_continued_on_another_cpu(plan: Plan, killed: Path, monkeypatch) -> None:
    there = Machine.here().processor
    monkeypatch.setattr(Machine, "here", lambda: Machine("toaster", 2, "Linux", "3", "family 6"))
    with pytest.raises(ValueError, match="was begun on cpu ") as caught, open_run(plan, SOURCE, True):
        pytest.fail("this is another CPU")
    line = str(caught.value)
    assert f"was begun on cpu {there}, this is cpu toaster, family 6; continue it there or choose another --out" in line
    assert "\n" not in line
    assert ".bundle.a1" in tree(killed)


def test_case_2_a_run_is_not_continued_by_another_version(plan: Plan, killed: Path, monkeypatch) -> None:
    monkeypatch.setattr(folder, "version", lambda _: "99.0")
    with pytest.raises(ValueError, match=r"begun on hnas [\d.]+, this is hnas 99\.0; "), open_run(plan, SOURCE, True):
        pytest.fail("this is another version")


def test_case_2_other_options_are_named_before_another_cpu(plan: Plan, killed: Path, monkeypatch) -> None:
    monkeypatch.setattr(Machine, "here", lambda: Machine("toaster", 2, "Linux", "3"))
    with pytest.raises(ValueError, match="run with other seed; choose"), open_run(replace(plan, seed=1), SOURCE, True):
        pytest.fail("this is another run")


def test_case_4_a_run_that_begins_and_cannot_reach_its_bounds_leaves_no_trace(plan: Plan) -> None:
    with pytest.raises(Unreachable), open_run(plan, SOURCE, False) as journal:
        _in_vain(journal, "a")
    assert not plan.out.exists()


def test_case_4_a_run_that_was_resumed_loses_nothing_when_it_cannot(plan: Plan, killed: Path) -> None:
    with pytest.raises(Unreachable), open_run(plan, SOURCE, True) as journal:
        _in_vain(journal, "c")
    assert (killed / "artifacts/0123/fp32/model").exists()
    with open_run(plan, SOURCE, True) as journal:
        assert journal.entries == {"a": 1, "b": 2, "c": 0}


def test_a_run_without_a_finished_call_leaves_no_trace(plan: Plan) -> None:
    with pytest.raises(KeyboardInterrupt), open_run(plan, SOURCE, False):
        raise KeyboardInterrupt
    assert not plan.out.exists()


def test_what_is_said_of_a_run_is_json(plan: Plan) -> None:
    found = folder.run_identity(plan, SOURCE)
    assert json.loads(json.dumps(found)) == found
    assert {"hnas", "cpu", "supernet", "data", "seed"} <= found.keys()


# --- working_folder ---------------------------------------------------------------------------------------------------


def test_the_working_folder_is_removed_and_its_neighbours_stay(tmp_path: Path) -> None:
    out = tmp_path / "net"
    with working_folder(out) as work:
        (work / "fp32").mkdir()
        (out / "bundle").mkdir()
    assert tree(tmp_path) == {"net", "net/bundle"}
    with pytest.raises(FileExistsError, match="net exists and is not empty"), working_folder(out):
        pytest.fail("it is in use")
    with pytest.raises(RuntimeError), working_folder(tmp_path / "other"):
        raise RuntimeError
    assert tree(tmp_path) == {"net", "net/bundle"}


def test_the_working_folder_is_locked_and_one_left_by_a_kill_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "net" / folder.WORK / "int8"
    left.mkdir(parents=True)
    with working_folder(tmp_path / "net") as work:
        assert not (work / "int8").exists()
        with pytest.raises(ValueError, match="another run is using"), working_folder(tmp_path / "net"):
            pytest.fail("it is held")
    assert tree(tmp_path) == set()
