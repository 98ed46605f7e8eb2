"""``hnas-bench run`` where a part of it fails or is odd: nothing that was measured is lost, and no line is wrong."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hnas.benchmarks import cli
from hnas.benchmarks.gate import history, session, summary
from hnas.benchmarks.gate.accuracy import LabelledSamples, _hits_of
from hnas.benchmarks.gate.measures import Quantile
from hnas.benchmarks.gate.records import PartVerdict, Ratio
from hnas.benchmarks.gate.suite_records import ClaimReport, SuiteReport
from hnas.benchmarks.gate.verdict import judge_same, worded
from hnas.benchmarks.suites import _page_of
from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import ExportError
from tests.benchmarks.bundles import PREPROCESSING, network
from tests.benchmarks.gate.suites import FASTER, HEADER, models, write

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models(tmp_path_factory.mktemp("faults"))


def test_points_against_a_bare_model_file(root: Path, capsys: Any) -> None:
    bare = {"name": "bare", "artifact": "good", "baseline": "heavy/model.onnx", "max_points_less": 100, "data": "data"}
    turned = {**bare, "name": "turned", "artifact": "light/model.onnx", "baseline": "good"}
    long = HEADER.replace("8s", "240s")  # nothing is timed: a busy machine needs more
    code = cli.main(["run", str(write(root, bare, turned, header=long)), "--json"])
    shown = capsys.readouterr()
    assert (code, shown.err) == (0, "")
    parts = [part for claim in json.loads(shown.out)["claims"] for part in claim["parts"]]
    assert [re.sub(r"\d+ of 120 .*", "counted", part["line"]) for part in parts] == ["counted"] * 2


def test_a_bare_model_file_of_another_size_fails_alone(root: Path, capsys: Any) -> None:
    network(root / "small", 4, side=20)
    odd = {"name": "odd", "artifact": "good", "baseline": "small/model.onnx", "max_points_less": 1, "data": "data"}
    right = {"name": "right", "artifact": "light", "max_size": "1MB"}
    code = cli.main(["run", str(write(root, odd, right))])
    shown = capsys.readouterr()
    assert (code, shown.err) == (1, "")
    assert re.search(r"^  run +fails: .*invalid dimensions", shown.out, re.MULTILINE)
    assert re.search(r"^right +holds", shown.out, re.MULTILINE)


@pytest.mark.parametrize("shape", [(4,), (1, 10), (4, 10, 1, 1), (4, 0)])
def test_scores_of_another_shape_than_stated_are_one_line(shape: tuple[int, ...]) -> None:
    samples = LabelledSamples(np.zeros((4, 28, 28, 1), np.uint8), np.zeros(4, int), PREPROCESSING)
    with pytest.raises(ExportError, match="no scores"):
        _hits_of(lambda batches: [(np.zeros(shape),) for _ in batches], samples, 4)


def test_a_failed_write_does_not_lose_the_measurement(
    root: Path, steady: None, capsys: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("the disk is full")

    monkeypatch.setattr(history, "append_history", fail)
    assert cli.main(["run", str(write(root, FASTER)), "--history", str(tmp_path / "h.jsonl")]) == 2
    shown = capsys.readouterr()
    assert re.search(r"^faster +holds: faster", shown.out, re.MULTILINE)
    assert "the disk is full" in shown.err


def test_a_read_only_history_is_found_before_the_measurement(
    root: Path, capsys: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    file = tmp_path / "h.jsonl"
    file.touch()
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != file and real(path, mode))  # root may write all
    assert cli.main(["run", str(write(root, FASTER)), "--history", str(file)]) == 2
    shown = capsys.readouterr()
    assert (shown.out, "h.jsonl: it is read-only" in shown.err) == ("", True)


@pytest.mark.parametrize(("broken", "line"), [(1, "a baseline against itself"), (2, "failed: the runtime of every")])
def test_the_calibration_takes_the_first_claim_that_runs(
    root: Path, steady: None, capsys: Any, monkeypatch: Any, broken: int, line: str
) -> None:
    measure, asked = session.compare_fresh, list[str]()

    def compare(baseline: Artifact, candidates: Sequence[Artifact], *rest: Any, **options: Any) -> list[Any]:
        asked.append(baseline.path.name)
        if baseline.path.name in ("heavy", "twin")[:broken]:
            raise ExportError("crashed")
        return measure(baseline, candidates, *rest, **options)

    monkeypatch.setattr(session, "compare_fresh", compare)
    other = {**FASTER, "name": "other", "baseline": "twin"}
    assert cli.main(["run", str(write(root, FASTER, other))]) == 1
    assert re.search(rf"^calibration +{line}", capsys.readouterr().out, re.MULTILINE)
    assert asked[:2] == ["heavy", "twin"]


def test_a_percentile_states_its_calls() -> None:
    few, many, mean = Quantile(99.0), Quantile(99.0), Quantile(None)
    for each, calls in ((few, 36), (many, 600), (mean, 36)):
        each._pairs([1.0] * calls, [1.0] * calls)
    assert few.note() == "; each p99 is of 6 calls or more, so it may be little below their largest"
    assert (many.note(), mean.note()) == ("; each p99 is of 100 calls or more", "")


def test_the_verdict_on_a_percentile_states_its_calls(root: Path, steady: None, capsys: Any) -> None:
    assert cli.main(["run", str(write(root, {**FASTER, "measure": "p99"}))]) == 0
    assert re.search(
        r"^  p99 +holds: .* 1\.50x; each p99 is of 1 call or more, so", capsys.readouterr().out, re.MULTILINE
    )


def test_memory_is_smaller_or_larger() -> None:
    speed = Ratio(2.0, 1.9, 2.1, 0.95, (((2.0, 1.0),),) * 2, 2)
    noise = replace(speed, value=1.0, low=0.99, high=1.01)
    assert judge_same(speed, noise, 3.0, "peak_memory")[1].startswith("smaller by more than 3 %")
    assert [worded(word, "peak_memory") for word in ("slower", "same within 3 %")] == ["larger", "same within 3 %"]


def test_names_of_claims_are_not_rows_of_the_suite() -> None:
    names = ("verdict", "load", "suite", "calibration")
    part = PartVerdict("size", "holds", "small")
    claims = tuple(ClaimReport(name, "", "", (part,), None, None, None, 0, "x", "") for name in names)
    report = SuiteReport("s", claims, None, True, 0, 1.0, {}, "cpu", {}, None)
    assert [name for name, _ in summary.rows_of_suite(report)] == ["suite", "calibration", "verdict"]
    assert _page_of(report).partition("<h2>")[0].count("bounds, none of them timed") == 0
