"""Every deployment and every check writes its page, and a picture where one is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hnas.benchmarks.cli import main as bench_main
from hnas.report import print_training

Call = Callable[..., tuple[int, str, str]]
NETWORK = "import torch\ndef build():\n    torch.manual_seed(0)\n    return torch.nn.Linear(4, 3)\n"


@pytest.mark.slow
def test_an_export_writes_its_report_and_its_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("reported_network.py").write_text(NETWORK)
    flags = ("--input", "1x4", "--target", "onnxruntime-cpu", "--out", "run", "--precision", "fp32")
    code, said, failed = call("export", "reported_network:build", *flags, "--png", "front.png")
    assert code == 0, failed
    assert "report: run/report.html\npicture: front.png\n" in said
    assert Path("front.png").read_bytes().startswith(b"\x89PNG")
    text = Path("run/report.html").read_text()
    manifest = json.loads(Path("run/bundle/manifest.json").read_text())
    assert manifest["digest"] in text
    assert f"{manifest['latency']['value']:.3g} ms" in text
    assert "Gemm" in text, "no layer was timed"
    assert "calls)" in text, "no times"


@pytest.mark.parametrize(("data", "flags"), [({}, " --data FILE"), ({"source": "lorenz"}, "")])
def test_the_next_command_has_the_data_that_it_needs(
    data: dict[str, str], flags: str, capsys: pytest.CaptureFixture[str]
) -> None:
    score = {"name": "error", "higher": False, "form": ".2f"}
    record = {"score": score, "accuracy": {"largest": -0.5}, "baselines": {}, "recipe": {"data": data}}
    print_training(Path("net"), {**record, "steps": 1, "seconds": 1.0})
    next_command = "next: hnas-deploy --target openvino-cpu --supernet net"
    assert capsys.readouterr().out.splitlines()[-1] == next_command + flags


@pytest.mark.parametrize(("file", "reason"), [("x.jpg", "ends with .png"), ("nowhere/x.png", "no folder nowhere")])
def test_a_picture_that_cannot_be_is_refused_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call, file: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (("--target", "onnxruntime-cpu"), ("export", "a:b", "--target", "onnxruntime-cpu")):
        code, said, failed = call(*words, "--png", file)
        assert (code, said, failed.count("\n")) == (2, "", 1)
        assert reason in failed
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_check_and_compare_write_their_reports(bundle: Path, tmp_path: Path, call: Call) -> None:
    quick = ("--processes", "1", "--max-time", "5s")
    one = str(bundle)  # without a baseline, so that its claim cannot be checked
    for words, wanted in ((("check", one, "--here"), (4, "inconclusive")), (("compare", one, one), (0, "of b"))):
        page = tmp_path / f"{words[0]}.html"
        code, said, failed = call(*words, *quick, "--report", str(page), main=bench_main)
        (verdict,) = (line.split(maxsplit=1)[1] for line in said.splitlines() if line.startswith("verdict"))
        assert (code, wanted[1] in verdict, failed) == (wanted[0], True, "")
        assert verdict.split(" (")[0] in page.read_text()
    code, _, failed = call("compare", one, one, "--report", "/proc/x.html", main=bench_main)
    assert (code, failed.count("\n")) == (2, 1)
