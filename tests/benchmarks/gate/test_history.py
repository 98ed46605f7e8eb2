"""The history of suites: torn and damaged lines, and steps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hnas.benchmarks import cli
from hnas.benchmarks.gate.history import Recorded, append_history, find_step, read_history, series_of

RUN = Recorded("2026-01-01T00:00:00+00:00", "s", "a", "p50", "holds", "faster", 2.0, 1.9, 2.1, "cpu", "x", "y", "abc")


def history(file: Path, *ratios: float) -> Path:
    append_history(file, [replace(RUN, ratio=each, low=each, high=each) for each in ratios])
    return file


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = history(tmp_path / "h.jsonl", 1.0)
    untimed = replace(RUN, ratio=None, low=None, high=None, word="", claim="b")
    append_history(file, [untimed])
    assert read_history(file) == [replace(RUN, ratio=1.0, low=1.0, high=1.0), untimed]


def test_any_torn_end_is_ignored_and_then_replaced(tmp_path: Path) -> None:
    whole = history(tmp_path / "whole.jsonl", 1.0, 2.0).read_bytes()
    first = whole.index(b"\n") + 1
    torn = tmp_path / "torn.jsonl"
    for cut in [*range(first, len(whole), 7), len(whole) - 1]:
        for rest in (b"", b"\0" * 40):
            torn.write_bytes(whole[:cut] + rest)
            assert [run.ratio for run in read_history(torn)] == [1.0]
            assert [run.ratio for run in read_history(history(torn, 3.0))] == [1.0, 3.0]


def test_what_is_damaged_or_foreign_is_refused_and_kept(tmp_path: Path, capsys: Any) -> None:
    whole = history(tmp_path / "whole.jsonl", 1.0, 2.0).read_bytes()
    file = tmp_path / "bad.jsonl"
    for content in (whole.replace(b"holds", b"fails", 1), b"notes\n", b"notes", b"notes\nmore", whole + b"notes"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="hnas-bench"):
            history(file, 3.0)
        assert file.read_bytes() == content
        assert cli.main(["history", str(file)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert cli.main(["history", str(tmp_path / "none.jsonl")]) == 2
    assert cli.main(["history", str(tmp_path)]) == 2


def series(seed: int, before: int, after: int, factor: float) -> list[float]:
    rng = np.random.default_rng(seed)
    return [float(np.exp(rng.normal(0, 0.02))) * (factor if at >= before else 1.0) for at in range(before + after)]


def test_a_step_is_found_where_it_is() -> None:
    for factor in (0.9, 1.1):
        step = find_step(series(0, 12, 8, factor))
        assert step is not None
        assert abs(step.at - 12) <= 1
        assert step.factor == pytest.approx(factor, rel=0.03)


def test_the_last_of_two_steps_is_found() -> None:
    rng = np.random.default_rng(1)
    levels = [1.0] * 12 + [0.8] * 12 + [0.9] * 12
    step = find_step([level * float(np.exp(rng.normal(0, 0.01))) for level in levels])
    assert step is not None
    assert step.at == 24
    assert step.factor == pytest.approx(0.9 / 0.8, rel=0.02)


def test_false_alarms_are_as_rare_as_stated() -> None:
    alarms = sum(find_step(series(seed, 20, 0, 1.0), seed) is not None for seed in range(200))
    assert alarms <= 7  # of 200 at 1 %: more has a chance of 0.1 %


def test_what_is_too_short_or_constant_has_no_step() -> None:
    assert find_step([]) is None
    assert find_step([1.0, 1.0, 1.0, 9.0, 9.0]) is None
    assert find_step([2.0] * 40) is None


def test_the_command_prints_runs_and_steps(tmp_path: Path, capsys: Any) -> None:
    file = history(tmp_path / "h.jsonl", *series(0, 12, 8, 0.9))
    append_history(file, [replace(RUN, claim="other", processor="another cpu")])
    assert cli.main(["history", str(file)]) == 0
    out = capsys.readouterr().out
    assert "20 runs of p50 against y on cpu, s" in out
    assert "worse since 2026-01-01T00:00:00+00:00 (abc)" in out
    assert "none seen in 1 run;" in out
    assert cli.main(["history", str(file), "--json"]) == 0
    first, other = json.loads(capsys.readouterr().out)["series"]
    assert first["step"]["factor"] == pytest.approx(0.9, rel=0.03)
    assert other["step"] is None


def test_suites_and_baselines_are_series_of_their_own() -> None:
    runs = [RUN, replace(RUN, suite="t"), replace(RUN, baseline="z"), RUN]
    assert sorted(map(len, series_of(runs).values())) == [1, 1, 2]
