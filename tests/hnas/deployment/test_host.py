"""A deployment measured on another machine, behind a real sshd: measured there, resumed after a lost connection."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hnas
from hnas.benchmarks.cli import main as bench
from hnas.cli import deploy_main
from hnas.deployment import flow, pricing
from hnas.deployment.options import SearchOptions
from hnas.deployment.plan import resolve
from hnas.export import backends
from hnas.export.bundle.manifest import Machine
from hnas.export.device.errors import Disconnected
from tests.conftest import need
from tests.export.loopback import SSHD, Loopback, loopback
from tests.hnas import photos

pytestmark = [
    pytest.mark.skipif(SSHD is None, reason="sshd is not installed; apt-get install openssh-server"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    with loopback(tmp_path_factory.mktemp("board")) as found, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{found.bin}:{os.environ['PATH']}")
        yield found


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Short measurements, a cache of its own, and another CPU than the device's."""
    monkeypatch.setattr(flow, "PROCESSES", 1)
    monkeypatch.setattr(flow, "BLOCKS", 2)
    monkeypatch.setattr(pricing, "BLOCKS", 2)
    monkeypatch.setattr(Machine, "here", lambda: Machine("a laptop", 2, "Linux", "3.11"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def options(trained: Path, board: Loopback) -> dict[str, Any]:
    return {
        "precision": "fp32",
        "budget": "3evals",
        "supernet": trained / "trained",
        "data": trained / "photos",
        "out": "run",
        "host": f"{board.address}{sys.executable}",
    }


def words(options: dict[str, Any]) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def test_a_board_is_measured_where_it_is(
    here: Path, options: dict[str, Any], board: Loopback, capsys: pytest.CaptureFixture[str]
) -> None:
    """Predicted without --host, measured with it; the manifest says of which machine, and the claim holds there."""
    need("tflite", backends.load("tflite").missing())
    target = "raspberry-pi-5"
    found = hnas.deploy(target, **options)
    manifest = found.bundle.manifest
    assert (manifest.target, manifest.backend, manifest.latency.kind) == (target, "tflite", "measured")
    assert manifest.machine.cpu != "a laptop"
    assert f"--host {options['host']}" in manifest.reproduce
    shown = found.to_json()
    assert "measured in interleaved blocks on ssh://board over" in shown["footnote"]
    (line,) = [note for note in shown["notes"] if note.startswith("end to end on the device ")]
    assert re.search(r" ms: prepare [\d.e-]+, run with copies [\d.e-]+, answer [\d.e-]+ \(medians, n=30\)$", line)
    assert list((board.cache / "artifacts").iterdir())
    capsys.readouterr()
    check = ["check", str(found.bundle.path), "--host", options["host"], "--data", str(options["data"])]
    code = bench([*check, "--processes", "1", "--max-time", "5s", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert code in (0, 4)
    assert report["machine"]["cpu"] == manifest.machine.cpu
    assert report["evidence"]["accuracy"]["value"] == manifest.accuracy.artifact
    assert resolve(SearchOptions(target)).measured is False


def test_a_run_whose_link_was_cut_is_continued(
    here: Path, options: dict[str, Any], board: Loopback, capsys: pytest.CaptureFixture[str]
) -> None:
    need("onnxruntime", backends.load("onnxruntime").missing())

    def cut(stage: str, done: int, _: int) -> None:
        if (stage, done) == ("search", 2):
            board.link.down = True
            board.link.cut()

    with pytest.raises(Disconnected, match="connection to ssh://board") as caught:
        hnas.deploy("onnxruntime-cpu", **options, on=cut)
    assert "\n" not in str(caught.value)
    before = photos.journal(here / "run")
    assert any(key.startswith("cost/") for key in before)
    board.link.down = False
    assert deploy_main(["--target", "onnxruntime-cpu", *words(options), "--resume", "--json"]) == 0
    after = photos.journal(here / "run")
    assert before.items() <= after.items()
    assert json.loads(capsys.readouterr().out)["rows"]


def test_a_host_that_is_not_there_is_one_line(
    here: Path, options: dict[str, Any], board: Loopback, capsys: pytest.CaptureFixture[str]
) -> None:
    board.link.down = True
    try:
        assert deploy_main(["--target", "onnxruntime-cpu", *words(options)]) == 3
    finally:
        board.link.down = False
    assert capsys.readouterr().err.startswith("hnas-deploy: no connection to ssh://board: ")
    assert deploy_main(["--target", "onnxruntime-cpu", *words({**options, "host": "board"})]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (here / "run").exists()
