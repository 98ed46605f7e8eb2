"""Tables that fit the screen without a broken interval, and stages that name themselves on a pipe."""

from __future__ import annotations

from typing import Any

import pytest

from hnas import report


def row(precision: str, **changes: Any) -> dict[str, Any]:
    return {
        "subnet": "2b7278e4b958",
        "precision": precision,
        "accuracy_fp32": 0.9355,
        "accuracy": 0.9335,
        "sqnr_db": 41.2,
        "grade": "as float",
        "latency_ms": {"value": 0.0617, "low": 0.0608, "high": 0.0626},
        "predicted_ms": {"value": 0.0123, "low": 0.0045, "high": 0.0678},
        "speedup": {"value": 2.64, "low": 2.61, "high": 2.67, "kind": "measured"},
        "size_bytes": 283_000,
        "verdict": "not taken: 1.51x the time of int8",
        **changes,
    }


def deployment(*rows: dict[str, Any]) -> dict[str, Any]:
    own = {"target": "openvino-cpu", "name": "shoes", "refused": [], "notes": [], "footnote": "foot", "bundle": "b"}
    return {**own, "rows": list(rows)}


TABLE = deployment(row("fp32", speedup=None, verdict="baseline"), row("int8", verdict="kept"), row("mixed"))


def printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int, found: Any, **options: Any
) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    report.print_deployment(found, **options)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("columns", "gone"),
    [
        (80, "top-1 fp32, p50 ms [95 %], size"),
        (100, "top-1 fp32, size"),
        (120, "top-1 fp32"),
        (160, ""),
    ],
)
def test_a_table_fits_and_breaks_no_interval(monkeypatch: Any, capsys: Any, columns: int, gone: str) -> None:
    out = printed(monkeypatch, capsys, columns, TABLE)
    table = out.partition("left out")[0].partition("foot")[0].splitlines()
    assert max(map(len, table)) <= columns
    assert "2.64x [2.61, 2.67]" in out
    assert ("0.0617 [0.0608, 0.0626]" in out) == (columns > 80)
    assert "2b7278e4b958, mixed" in out
    assert ("283 KB" in out) == (columns > 100)
    said = f"left out, as the screen has {columns} columns: {gone}; --wide shows all"
    assert (said in out) == bool(gone), out


def test_wide_shows_every_column(monkeypatch: Any, capsys: Any) -> None:
    out = printed(monkeypatch, capsys, 40, TABLE, wide=True)
    assert "left out" not in out
    line = next(line for line in out.splitlines() if "mixed" in line)
    for cell in ("93.55%", "93.35%", "0.0617 [0.0608, 0.0626]", "2.64x [2.61, 2.67]", "283 KB", "not taken: 1.51x the"):
        assert cell in line


def test_a_prediction_is_shown_only_where_nothing_was_measured(monkeypatch: Any, capsys: Any) -> None:
    out = printed(monkeypatch, capsys, 200, TABLE)
    assert "p50 ms [95 %]" in out
    assert "0.0123" not in out
    predicted = deployment(row("fp32", latency_ms=None, verdict="kept"))
    out = printed(monkeypatch, capsys, 200, predicted)
    assert "predicted ms [band]" in out
    assert "0.0123 [0.0045, 0.0678]" in out
    assert "p50" not in out


def test_a_network_without_labels_fits_too(monkeypatch: Any, capsys: Any) -> None:
    own = deployment(*(row(name, accuracy=None, accuracy_fp32=None) for name in ("fp32", "int8")))
    out = printed(monkeypatch, capsys, 80, own)
    assert max(map(len, out.partition("left out")[0].splitlines())) <= 80
    assert "2.64x [2.61, 2.67]" in out


def test_stages_are_lines_on_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with report.show_stages() as on:
        for done in range(33):
            on("search", done, 32)
        on("build largest fp32", 0, 4)
        on("build largest fp32", 0, 4)
        on("build abc int8\x1b[31m", 1, 4)
        on("measure fp32, int8", 0, 1)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        *(f"[search, {done} of 32]" for done in (0, 8, 16, 24, 32)),
        "[build largest fp32]",
        "[build abc int8\\x1b[31m]",
        "[measure fp32, int8]",
    ]


def test_quiet_prints_no_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with report.show_stages(quiet=True) as on:
        on("search", 0, 32)
    assert capsys.readouterr().err == ""
