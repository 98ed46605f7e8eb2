"""The arm64 runtimes under an emulator, where ``--prepare`` was run, and the messages where it was not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hnas.benchmarks.costs import arm64
from hnas.export.device.artifact import Artifact, TensorSpec, digest_files

X = np.linspace(-1, 1, 8, dtype=np.float32).reshape(1, 8)


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a small net for both runtimes, by backend."""
    torch = pytest.importorskip("torch")
    from hnas import export

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4)).eval()
    folder = tmp_path_factory.mktemp("nets")
    for backend in arm64.BACKENDS:
        export.compile(net, (torch.from_numpy(X),), device=f"{backend}-cpu", path=folder / backend)
    return {backend: folder / backend for backend in arm64.BACKENDS}


@pytest.mark.slow
@pytest.mark.skipif(arm64.missing_emulator() is not None, reason=str(arm64.missing_emulator()))
def test_real_arm64_runtimes_compute_the_same(nets: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert arm64.main([*map(str, nets.values()), "--json", "--runs", "2"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["backend"] for each in found] == list(arm64.BACKENDS)
    for each in found:
        assert each["sqnr_db"] > 100
        assert each["instructions"] is None or 1_000 < each["instructions"] < 2_000_000


def test_what_is_missing_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(arm64, "_emulator", lambda: "/usr/bin/qemu-aarch64")
    assert arm64.main(["net"]) == 3
    assert "python -m hnas.benchmarks.costs.arm64 --prepare" in capsys.readouterr().err
    monkeypatch.setattr(arm64, "_emulator", lambda: None)
    assert arm64.main(["net"]) == 3
    assert (
        capsys.readouterr().err
        == "hnas.benchmarks.costs.arm64: there is no emulator of arm64; apt-get install qemu-user\n"
    )
    monkeypatch.setenv("PATH", "/nowhere")
    assert arm64.main(["--prepare"]) == 3
    assert "apt-get is missing; this needs Debian or Ubuntu" in capsys.readouterr().err


def test_what_does_not_run_there_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.xml").write_text('<?xml version="1.0"?><net name="x" version="11"/>')
    x = TensorSpec("x", (1, 8), "float32")
    files = digest_files(tmp_path, "model.xml")
    Artifact(tmp_path, "openvino", "fp32", "openvino-cpu", 1, (x,), (x,), files).write()
    transport: Any = None  # not reached
    with pytest.raises(ValueError, match=r"is for openvino; arm64 runs onnxruntime, tflite$"):
        arm64.examine(tmp_path, transport, None, 1)
    (tmp_path / "net.onnx").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"states no inputs; give the artifact's folder$"):
        arm64.examine(tmp_path / "net.onnx", transport, None, 1)


def test_instructions_are_those_of_a_call(tmp_path: Path) -> None:
    """A request costs 700 instructions, and each call 50 more."""
    counter = tmp_path / "instructions"
    counter.write_text("00001000\n")

    class Counted:
        def time(self, _: object, runs: int) -> None:
            counter.write_text(f"{int(counter.read_text()) + 700 + 50 * runs:020}\n")

    worker: Any = Counted()
    assert arm64.instructions(worker, [X], counter, 4) == 50
