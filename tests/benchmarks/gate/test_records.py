"""The files that a CI system reads: JUnit and JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path
from xml.etree import ElementTree

import pytest

from hnas.benchmarks.gate import records
from hnas.benchmarks.gate.records import Outcome, PartVerdict


@pytest.mark.parametrize(
    ("outcome", "child"),
    [
        pytest.param("holds", None, id="1 holds"),
        pytest.param("fails", "failure", id="2 fails"),
        pytest.param("inconclusive", "skipped", id="3 inconclusive"),
        pytest.param("not checked", "skipped", id="3 not checked"),
    ],
)
def test_junit(outcome: Outcome, child: str | None) -> None:
    root = ElementTree.fromstring(
        records.junit("a<b>&'c'", [PartVerdict("speedup", outcome, 'says "1 < 2 & more"')], 1.5)
    )
    (case,) = root.iter("testcase")
    assert (case.get("classname"), case.get("name")) == ("hnas-bench.a<b>&'c'", "speedup")
    assert [element.tag for element in case if element.tag != "system-out"] == ([child] if child else [])
    assert case.findtext("system-out") == 'says "1 < 2 & more"'
    assert root.get("failures") == str(int(outcome == "fails"))
    assert root.get("skipped") == str(int(child == "skipped"))


def test_an_error_is_a_case_too_whatever_its_line_holds() -> None:
    root = ElementTree.fromstring(records.junit_error("net", 'model.onnx\x1b[31m is "gone" \udc80 <b>', 2))
    (case,) = root.iter("testcase")
    assert (case.get("classname"), case.get("name")) == ("hnas-bench.net", "check")
    error = case.find("error")
    assert error is not None
    assert (error.get("type"), error.get("message")) == ("exit code 2", 'model.onnx[31m is "gone"  <b>')
    assert {key: root.get(key) for key in ("tests", "errors", "failures")} == {
        "tests": "1",
        "errors": "1",
        "failures": "0",
    }


def test_a_record_is_strict_json() -> None:
    assert json.loads(records.to_text({"a": 1.5})) == {"a": 1.5}
    with pytest.raises(ValueError):
        records.to_text({"a": float("nan")})


def test_a_place_that_cannot_be_written_is_told_before(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "report.xml"):
        with pytest.raises(ValueError, match="choose another place"):
            records.require_writable(path)


def test_a_ratio_reads_itself_out() -> None:
    ratio = records.Ratio(2.0, 1.9, 2.1, 0.95, (((2.0, 1.0),) * 6,), 3)
    assert ratio.line() == "2.000x 95% [1.900, 2.100], 6 blocks in 1 process, cut from 3 for lack of time"
    assert ratio.spread == 2.1
    assert records.Ratio(0.5, 0.4, 0.6, 0.95, ratio.rounds, 1).spread == 2.5


def test_a_device_or_a_pipe_is_not_replaced_by_a_report(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="it is a device or a pipe"):
        records.require_writable(tmp_path / "pipe")
    with pytest.raises(ValueError, match="it is a device or a pipe"):
        records.require_writable(Path("/dev/null"))
