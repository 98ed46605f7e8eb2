"""LoadGen's scenarios run on a bundle; what is wrong is one line, and a network that fails ends the test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hnas.benchmarks.cli import main
from hnas.benchmarks.gate.loadgen import _Served
from hnas.benchmarks.loadgen import _FIGURES, _LoadReport
from hnas.export.device.errors import ExportError
from tests.benchmarks import bundles
from tests.conftest import LIMIT_S
from tests.hostile import builders as b

installed = pytest.mark.skipif(find_spec("mlperf_loadgen") is None, reason="LoadGen is missing; make test-extras")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime")
    return bundles.bundle(tmp_path_factory.mktemp("loaded"), "tiny", heavy=None)


@installed
@pytest.mark.parametrize("scenario", _FIGURES)
def test_a_scenario_runs(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], scenario: str) -> None:
    words = ["loadgen", str(bundle), "--scenario", scenario, "--seconds", "0.2s", "--out", str(tmp_path / "logs")]
    code = main([*words, "--json", *(["--qps", "50"] if scenario == "Server" else [])])
    found = json.loads(capsys.readouterr().out)
    told = found["loadgen"]
    assert told["effective_scenario"] == scenario
    assert code == {"VALID": 0}.get(told["result_validity"], 4 if told.get("result_perf_constraints_met", True) else 1)
    samples = told["result_query_count"] * told["effective_samples_per_query"]
    assert found["calls"] == samples > 0
    assert 0 < found["call_median_s"] < 1
    summary = (tmp_path / "logs/mlperf_log_summary.txt").read_text()
    assert f"Scenario : {scenario}" in summary
    assert f"Result is : {told['result_validity']}" in summary
    rows = dict(_LoadReport(scenario, told, found["call_median_s"], found["calls"]).rows())
    figure = float(rows["figure"].split(": ")[1].split()[0])
    assert figure == pytest.approx(told[_FIGURES[scenario][1]] / (1e6 if rows["figure"].endswith("ms") else 1), abs=0.1)


@installed
def test_a_network_that_fails_ends_the_test(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = b.copied(bundle, tmp_path / "noise")
    model = folder / "artifact/model.onnx"
    model.write_bytes(bytes(model.stat().st_size))
    b.seal_file(folder / "artifact", "model.onnx")
    b.reseal(folder)
    assert main(["loadgen", str(folder)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("hnas-bench: onnxruntime cannot open")
    assert said.count("\n") == 1


@installed
def test_an_interrupted_test_ends_at_once(bundle: Path, tmp_path: Path) -> None:
    """Ctrl-C reaches every process of the terminal."""
    words = ["hnas.benchmarks", "loadgen", str(bundle), "--seconds", "1h", "--out", str(tmp_path / "logs")]
    process = subprocess.Popen(
        [sys.executable, "-m", *words], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    log = tmp_path / "logs/mlperf_log_detail.txt"
    while process.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=LIMIT_S)[1] == "hnas-bench: interrupted\n"
    assert process.returncode == 130


@pytest.mark.parametrize(("parent", "told"), [(os.getppid(), '{"error": "the worker died"}\n'), (-1, "")])
def test_the_process_ends_with_its_network_and_with_its_parent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, parent: int, told: str
) -> None:
    def run(inputs: object, runs: int) -> list[float]:
        if told:
            raise ExportError("the worker died")
        return [1e-3] * runs

    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit):
        _Served(SimpleNamespace(time=run), (), 1, parent).call(1)
    assert capsys.readouterr().out == told


@pytest.mark.parametrize(
    "words", [["--scenario", "Server"], ["--qps", "5"], ["--scenario", "server"], ["--seconds", "25h"]]
)
def test_wrong_use_is_2(bundle: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    try:
        code = main(["loadgen", str(bundle), *words])
    except SystemExit as stopped:
        code = stopped.code
    assert (code, capsys.readouterr().err.count("\n")) == (2, 1)


def test_a_missing_package_is_named(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    assert main(["loadgen", str(bundle)]) == 3
    line = "hnas-bench: mlperf_loadgen is not installed; pip install 'hnas[loadgen]'\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(("samples", "calls", "run"), [(1, 1, 1), (10, 3, 10), (1000, 64, 256)])
def test_a_call_takes_a_batch(samples: int, calls: int, run: int) -> None:
    asked = []
    worker = SimpleNamespace(time=lambda inputs, runs: asked.append(runs) or [1e-3] * runs)
    served = _Served(worker, (), 4, os.getppid())
    assert (served.call(samples), asked, len(served.seconds)) == (run, [calls], calls)


@pytest.mark.parametrize(
    ("told", "code"),
    [
        ({"result_validity": "VALID"}, 0),
        ({"result_validity": "INVALID", "result_min_duration_met": False}, 4),
        ({"result_validity": "INVALID", "result_perf_constraints_met": True, "early_stopping_met": False}, 4),
        ({"result_validity": "INVALID", "result_perf_constraints_met": False}, 1),
    ],
)
def test_exit_codes(told: dict[str, Any], code: int) -> None:
    assert _LoadReport("Server", told, 1e-3, 1).exit_code == code
