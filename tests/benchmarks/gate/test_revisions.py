"""``--baseline REF`` finds the runs of a commit and of those before it; ``report`` draws a history and a record."""

from __future__ import annotations

import re
import secrets
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hnas.benchmarks import cli
from hnas.benchmarks.gate.history import append_history, read_history
from hnas.benchmarks.gate.revisions import revision_here, runs_until
from tests.benchmarks.gate.suites import FASTER, models, write
from tests.benchmarks.gate.test_history import RUN, history, series


def git(folder: Path, *words: str) -> str:
    named = ("-c", "user.name=a", "-c", "user.email=a@b.invalid", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", "-C", str(folder), *named, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(folder: Path) -> str:
    git(folder, "commit", "--allow-empty", "-q", "-m", secrets.token_hex())  # two of one second are no twins
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("GITHUB_SHA", "CI_COMMIT_SHA", "GIT_DIR"):
        monkeypatch.delenv(name, raising=False)
    git(tmp_path, "init", "-q", "-b", "main")
    return tmp_path


def test_the_nearest_commit_before_is_last(repository: Path) -> None:
    old, base, new = (commit(repository) for _ in range(3))
    git(repository, "tag", "v1", base)
    git(repository, "checkout", "-q", "-b", "side", old)
    side = commit(repository)
    runs = [replace(RUN, revision=each) for each in (base, new, side, old, base, "")]
    assert [run.revision for run in runs_until("v1", runs, repository)] == [old, base, base]
    assert [run.revision for run in runs_until("side", runs, repository)] == [old, side]
    assert [run.revision for run in runs_until(new[:10], [runs[3]], repository)] == [old]
    with pytest.raises(ValueError, match=r"no run of v1 \(.{12}\) or of a commit before it"):
        runs_until("v1", [runs[1]], repository)


@pytest.mark.parametrize("ref", ["nowhere", "-h", "--all", "", "v1\0", "a b"])
def test_what_is_no_commit_is_refused(repository: Path, ref: str) -> None:
    commit(repository)
    with pytest.raises(ValueError, match="git knows no such commit"):
        runs_until(ref, [RUN], repository)


def test_the_commit_of_a_run(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert revision_here(repository) == ""
    (repository / "file").write_text("a")
    git(repository, "add", "file")
    head = commit(repository)
    (repository / "new").write_text("untracked")
    assert revision_here(repository) == head
    (repository / "file").write_text("b")
    assert revision_here(repository) == "", "a changed file is of no commit"
    monkeypatch.setenv("GITHUB_SHA", "abc")
    assert revision_here(repository) == "abc"
    monkeypatch.delenv("GITHUB_SHA")
    monkeypatch.setenv("PATH", "")
    assert revision_here(repository) == ""


def test_a_branch_is_a_baseline(repository: Path, steady: None, capsys: Any) -> None:
    suite, past = write(models(repository), FASTER), repository / "past.jsonl"
    first = commit(repository)
    assert cli.main(["run", str(suite), "--history", str(past)]) == 0
    assert read_history(past)[0].revision == first
    append_history(past, [replace(read_history(past)[0], low=900.0, ratio=950.0, high=990.0, revision="f" * 40)])
    commit(repository)
    assert cli.main(["run", str(suite), "--baseline", str(past)]) == 1, "the last line of the file has 900x"
    capsys.readouterr()
    assert cli.main(["run", str(suite), "--history", str(past), "--baseline", "main"]) == 0
    assert re.search(r"^  record +holds: ", capsys.readouterr().out, re.MULTILINE)
    for words in (["--baseline", "main"], ["--baseline", "other", "--history", str(past)]):
        assert cli.main(["run", str(suite), *words]) == 2
        shown = capsys.readouterr()
        assert (shown.out, shown.err.count("\n"), "which is no file" in shown.err) == ("", 1, True)


def test_a_history_and_a_record_are_drawn(tmp_path: Path, steady: None, capsys: Any) -> None:
    file, page = history(tmp_path / "h.jsonl", *series(0, 12, 8, 0.9)), tmp_path / "deep" / "h.html"
    append_history(file, [replace(RUN, claim="<b>untimed", ratio=None, low=None, high=None)])
    assert cli.main(["report", str(file), "--out", str(page)]) == 0
    text = page.read_text()
    assert text.count('<g class="mark') == 20
    assert text.count("<figure>") == 1, "what was not timed has no chart"
    assert "worse since" in text
    assert "<h2>&lt;b&gt;untimed</h2>" in text
    suite = write(models(tmp_path / "nets"), FASTER)
    shown, again = tmp_path / "shown.html", tmp_path / "again.html"
    capsys.readouterr()
    assert cli.main(["run", str(suite), "--json", "--report", str(shown)]) == 0
    record = tmp_path / "run.json"
    record.write_text(capsys.readouterr().out)
    assert cli.main(["report", str(record), "--out", str(again)]) == 0
    assert again.read_text() == shown.read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [("{}", "no record of hnas-bench run"), ('{"claims": []}', "schema is missing"), ("[", "run.json"),
     ('{"schema": 1, "claims": 3, "machine": {}}', "no record of hnas-bench run"),
     ('{"schema": 1, "suite": "s", "claims": [3], "machine": {}}', "claims[0] is 3, expected")],
)  # fmt: skip
def test_what_is_no_record_is_refused(tmp_path: Path, text: str, said: str, capsys: Any) -> None:
    file = tmp_path / "run.json"
    file.write_text(text)
    assert cli.main(["report", str(file), "--out", str(tmp_path / "x.html")]) == 2
    shown = capsys.readouterr()
    assert (shown.err.count("\n"), said in shown.err) == (1, True), shown.err
    assert not (tmp_path / "x.html").exists()
