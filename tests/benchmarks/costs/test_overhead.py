"""``python -m hnas.benchmarks.costs.overhead``: its interval, its lines, its exit code."""

from __future__ import annotations

import json
from math import comb
from typing import Any

import pytest

from hnas.benchmarks.costs import overhead

pytest.importorskip("torch")


@pytest.mark.parametrize("count", [6, 7, 12, 20, 33])
def test_the_interval_covers_the_median_with_95_percent_and_no_narrower_one_does(count: int) -> None:
    low, high = overhead.order_interval([float(value) for value in range(count)][::-1])
    assert low + high == count - 1
    left = int(low) + 1  # the median lies outside if fewer values than this are on one side of it
    outside = [2 * sum(comb(count, k) for k in range(n)) / 2**count for n in (left, left + 1)]
    assert outside[0] <= 0.05 < outside[1]


def test_a_tiny_net_is_measured_and_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(overhead, "MOST_MS", 1e6)  # no test depends on a clock
    said = ["--net", "tiny", "--backends", "onnxruntime", "--jobs", "6"]
    assert overhead.main([*said, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["overhead"]
    assert found["low_ms"] <= found["extra_ms"] <= found["high_ms"]
    assert found["here_ms"] > 0


def test_more_than_the_limit_is_exit_code_1(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"backend": "tflite", "here_ms": 300.0, "extra_ms": 160.0, "low_ms": 151.0, "high_ms": 170.0, "jobs": 6}
    whole = {"parameters": 5_500_000, "seconds": 61.0, "peak_mb": 2100}
    monkeypatch.setattr(overhead, "measure_overhead", lambda *_: row)
    monkeypatch.setattr(overhead, "measure_limits", lambda *_: whole)
    assert overhead.main(["--backends", "tflite", "--whole"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tflite       fp32: a job takes 160 ms more [151, 170] than the 300 ms here, n=6"
    assert lines[1] == "mobilenetv3 (5.5 M) through all, fp32 and int8: 61.0 s, 2.10 GB at most"
    row["low_ms"] = 149.0
    assert overhead.main(["--backends", "tflite"]) == 0


def test_too_few_jobs_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        overhead.main(["--jobs", "5"])
    assert "an interval of 95 % needs 6 or more" in capsys.readouterr().err
