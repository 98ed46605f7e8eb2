"""A killed compile leaves nothing for long: the next one removes its folders. A file from elsewhere has limits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hnas import export
from hnas.export.compiling import attempts, publishing
from hnas.export.compiling.compiler import limited_compiler
from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import ExportError
from hnas.export.remote.process import ChildProcess
from tests.export import nets, onnx_files

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

COMPILE = """
import sys
from hnas import export

def evidence():
    print("ready", flush=True)  # the folders have been made
    sys.stdin.read()
    yield ()

export.compile("net.onnx", path="out/net", device="onnxruntime-cpu", options=export.CompileOptions(evidence=evidence()))
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return onnx_files.save(onnx_files.convolution(), tmp_path / "net.onnx")


def kill_a_compile(folder: Path) -> None:
    """Compile net.onnx to out/net in a process that is killed between its start and its end."""
    (folder / "tmp").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", COMPILE],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(folder / "tmp")},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_the_next_compile_removes_what_a_killed_one_left(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_a_compile(tmp_path)
    beside = [path.name for path in (tmp_path / "out").iterdir()]
    assert [name.startswith(".net.") for name in beside] == [True]
    assert list((tmp_path / "tmp").glob("hnas-*"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    export.compile(file, path=tmp_path / "out/net", device="onnxruntime-cpu")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["net"]
    assert list((tmp_path / "tmp").glob("hnas-*")) == []


REPLACE = """
import os, signal, sys
from pathlib import Path
from hnas.export.compiling import publishing

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

target = Path(sys.argv[1])
with publishing.staging(target) as folder:
    (folder / "net").mkdir()
    rename = Path.rename
    Path.rename = lambda self, to: die() if to == target else rename(self, to)
    publishing.publish(folder / "net", target)
"""


def test_an_artifact_that_a_killed_compile_was_replacing_comes_back(tmp_path: Path) -> None:
    target = tmp_path / "net"
    target.mkdir()
    (target / "model").write_text("older")
    subprocess.run([sys.executable, "-c", REPLACE, str(target)], check=False)
    assert not target.exists()
    with publishing.staging(target):
        assert (target / "model").read_text() == "older"
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


# --- files from elsewhere ---------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The requests to child processes."""
    found: list[Any] = []
    ask = ChildProcess.ask

    def noted(self: ChildProcess, header: Any, arrays: Any = (), **more: Any) -> Any:
        found.append(header)
        return ask(self, header, arrays, **more)

    monkeypatch.setattr(ChildProcess, "ask", noted)
    return found


def test_an_onnx_file_is_converted_in_a_process_with_limits(
    file: Path, tmp_path: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "convert", None)  # the converter of this process
    export.compile(file, path=tmp_path / "net", device="onnxruntime-cpu")
    (header,) = [each for each in asked if each["do"] == "compile"]
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
    assert header["memory_mb"] == max(2048, machine // 2)
    assert header["cores"] is None  # it imports no torch
    assert limited_compiler()._timeout == 900


def test_a_module_is_converted_in_this_process(tmp_path: Path, asked: list[Any]) -> None:
    net, inputs = nets.build("two_by_two")
    options = export.CompileOptions(backend="reference", evidence=[inputs])
    assert isinstance(export.compile(net, inputs, path=tmp_path / "net", options=options), Artifact)
    assert "compile" not in [each["do"] for each in asked]


def tile_bomb(path: Path) -> Path:
    """Write an ONNX file of a few hundred bytes that repeats a number 950 million times: 3.8 GB."""
    from onnx import TensorProto, helper

    many = helper.make_tensor("n", TensorProto.INT64, [1], [950_000_000])
    nodes = [helper.make_node("Tile", ["x", "n"], ["y"])]
    return onnx_files.save(onnx_files.model(nodes, {"x": [1]}, {"y": [950_000_000]}, [many]), path)


@pytest.mark.parametrize("device", ["onnxruntime-cpu", "openvino-cpu"])
def test_a_bomb_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    pytest.importorskip(device.partition("-")[0])
    file = tile_bomb(tmp_path / "bomb.onnx")
    before = resident()
    with pytest.raises(ExportError, match=r"^bomb.onnx does not run .*size 3800000000 \(memory limit 2048 MB\)$"):
        export.compile(file, path=tmp_path / "out/net", device=device)
    assert resident() - before < 500
    assert left(tmp_path) == ["bomb.onnx", "tmp"]


def resident() -> int:
    """Return the largest memory that this process has had, in MB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def left(folder: Path) -> Sequence[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
