"""Workers run behind the real `adb`, which talks to a stand-in for the daemon of a phone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import Disconnected, ExportError, Unavailable
from hnas.export.proof.timing import measure
from hnas.export.remote import transports
from hnas.export.remote import upload as sending
from hnas.export.remote.phone_tool import read_tool_times
from hnas.export.remote.transports import adb
from hnas.export.remote.worker import Worker, describe_machine
from tests.export.loopback import free_port
from tests.export.remote.test_ssh import X, relu
from tests.export.standin_phone import TOOL, Phone, phone

ADB = shutil.which("adb")
pytestmark = pytest.mark.slow
needs_adb = pytest.mark.skipif(ADB is None, reason="adb is not installed; apt-get install adb")
PATH = f"{Path(sys.executable).parent}:/usr/bin:/bin"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Start an adb server for the tests, with its own keys and port, so that no real phone is seen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANDROID_ADB_SERVER_PORT", str(free_port()))
        patch.setenv("ANDROID_SDK_HOME", str(tmp_path_factory.mktemp("keys")))
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        subprocess.run(["adb", "start-server"], check=True, capture_output=True)
        yield
        subprocess.run(["adb", "kill-server"], check=False, capture_output=True)


@pytest.fixture
def device(server: None, tmp_path: Path) -> Iterator[Phone]:
    """Connect a phone whose python3 is this Python."""
    with phone(tmp_path / "tmp", {"PATH": PATH}) as found:
        said = subprocess.run(["adb", "connect", found.serial], check=True, capture_output=True, text=True).stdout
        assert "connected to" in said
        yield found
        subprocess.run(["adb", "disconnect", found.serial], check=False, capture_output=True)


@pytest.fixture
def bare(device: Phone) -> Phone:
    """Connect a phone without Python, but with the tool."""
    device.environment["PATH"] = str(device.folder / "bin")
    (device.folder / "bin").mkdir()
    words = ["sh", "env", "mkdir", "touch", "cat", "wc", "sha256sum", "cut", "ls", "tail", "rm", "mv", "uname", "nproc"]
    for word in words:
        (device.folder / "bin" / word).symlink_to(str(shutil.which(word)))
    getprop = device.folder / "bin" / "getprop"
    getprop.write_text("#!/bin/sh\ncase $1 in *manufacturer) echo Maker;; *model) echo Seven;; *) echo 14;; esac\n")
    getprop.chmod(0o755)
    return device


def push_tool(device: Phone, more: str = "--output_filepath") -> None:
    tool = device.folder / "benchmark_model"
    tool.write_text(TOOL.format(python=sys.executable, more=more))
    tool.chmod(0o755)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return relu(tmp_path_factory.mktemp("artifact") / "net")


@pytest.fixture(scope="module")
def lite(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    pytest.importorskip("ai_edge_litert")
    torch = pytest.importorskip("torch")
    from hnas import export

    path = tmp_path_factory.mktemp("lite") / "net"
    return export.compile(torch.nn.ReLU(), (torch.from_numpy(X),), device="tflite-cpu", path=path)


# --- a phone with a Python --------------------------------------------------------------------------------------------


@needs_adb
def test_a_net_runs_and_is_measured_there(device: Phone, artifact: Artifact) -> None:
    host = transports.connect("adb://")
    assert host.where == f"adb://{device.serial}"
    with Worker(artifact, transport=host) as worker:
        np.testing.assert_array_equal(worker(X)[0], np.maximum(X, 0))
    assert len(measure(artifact, [X], runs=20, transport=host).times) >= 10
    assert describe_machine("onnxruntime", host)[0].python == sys.version.split()[0]
    there = sorted(path.name.split("-")[0] for path in (device.folder / "hnas").iterdir())
    assert there == ["artifacts", "device"]


@needs_adb
def test_a_cut_transfer_goes_on_where_it_stopped(device: Phone, tmp_path: Path) -> None:
    large = relu(tmp_path / "large", rubbish=3_000_000)
    host = adb.AdbHost(f"adb://{device.serial}/{sys.executable}".replace("//", "/").replace("adb:/", "adb://"))
    host._sender._pause = 0.05
    device.cut_at = device.sent + 1_000_000
    before = device.sent
    assert Artifact.read(host.place(large.path)).digest == large.digest
    assert device.cut_at is None
    assert device.sent - before < 3_000_000 + 2 * sending.PIECE + 300_000


@needs_adb
def test_a_connection_that_goes_away_is_one_line_and_the_next_worker_works(device: Phone, artifact: Artifact) -> None:
    host = adb.AdbHost(f"adb://{device.serial}")
    with Worker(artifact, transport=host) as worker:
        worker(X)
        device.cut()
        with pytest.raises(
            Disconnected, match=r"^the connection to adb://127\.0\.0\.1:\d+ was lost on 'run'"
        ) as caught:
            worker(X)
        assert "\n" not in str(caught.value)
    with Worker(artifact, transport=host) as worker:
        np.testing.assert_array_equal(worker(X)[0], np.maximum(X, 0))
    device.down = True
    device.cut()
    with pytest.raises(Disconnected, match=r"^adb://127\.0\.0\.1:\d+ is (gone|offline); plug it in"):
        Worker(artifact, transport=host)


@needs_adb
def test_an_adb_that_is_killed_while_it_sends_is_started_again_where_it_stopped(device: Phone, tmp_path: Path) -> None:
    large = relu(tmp_path / "large", rubbish=3_000_000)
    host = adb.AdbHost(f"adb://{device.serial}")
    host._sender._pause = 0.05
    before, killed = device.sent, list[int]()

    def kill() -> None:
        assert host._sender._process is not None
        killed.append(host._sender._process._process.pid)
        os.kill(killed[0], 9)

    device.call_at, device.call = before + 1_000_000, kill
    assert Artifact.read(host.place(large.path)).digest == large.digest
    assert host._sender._process is not None
    assert host._sender._process._process.pid != killed[0]
    assert device.sent - before < 3_000_000 + 2 * sending.PIECE + 300_000


@needs_adb
@pytest.mark.parametrize("what", ["client", "server"])
def test_an_adb_that_is_killed_while_a_net_runs_loses_nothing(device: Phone, artifact: Artifact, what: str) -> None:
    host = adb.AdbHost(f"adb://{device.serial}")
    with Worker(artifact, transport=host) as worker:
        worker(X)
        before = serving(host)
        assert before
        if what == "client":
            worker._process.kill()
            worker._process.wait()
        else:
            subprocess.run(["adb", "kill-server"], check=True, capture_output=True)
        with pytest.raises(Disconnected, match=r"^the connection to adb://127\.0\.0\.1:\d+ was lost on '(run|bind)'"):
            measure(worker, [X], runs=20)
    end = time.monotonic() + 300
    while left := serving(host) & before:
        assert time.monotonic() < end, f"the worker outlived its connection: {left}"
        time.sleep(0.05)
    sent = device.sent
    with Worker(artifact, transport=host) as worker:
        np.testing.assert_array_equal(worker(X)[0], np.maximum(X, 0))
    assert device.sent - sent < artifact.size_bytes + 20_000  # requests only: the files are there


def serving(host: adb.AdbHost) -> set[int]:
    """Return the processes of workers on the phone, which is this machine, too."""
    listed = subprocess.run(["ps", "-wweo", "pid,args"], capture_output=True, text=True, check=True).stdout
    wanted = f"{host._program} hnas.export.device.serve_artifacts"
    return {int(line.split()[0]) for line in listed.splitlines() if wanted in line and "c=$?" not in line}


@needs_adb
def test_a_full_disk_is_one_line(device: Phone, tmp_path: Path) -> None:
    large = relu(tmp_path / "full", rubbish=1_500_000)
    host = adb.AdbHost(f"adb://{device.serial}")
    assert host._python is not None
    plain = host._python
    host._python = plain._replace(launcher="ulimit -f 1024;")
    with pytest.raises(ExportError, match=r"^adb://.*: cannot write .*/model\.onnx: File too large; fix") as caught:
        host.place(large.path)
    assert "\n" not in str(caught.value)
    host.close()
    host._python = plain
    assert Artifact.read(host.place(large.path)).digest == large.digest


@needs_adb
def test_a_worker_that_dies_says_how(device: Phone, artifact: Artifact) -> None:
    host = adb.AdbHost(f"adb://{device.serial}")
    with Worker(artifact, transport=host) as worker:
        os.kill(min(serving(host)), 11)
        with pytest.raises(ExportError, match=r"died with SIGSEGV on 'run'"):
            worker(X)


# --- a phone with TFLite's tool ---------------------------------------------------------------------------------------


@needs_adb
def test_the_tool_runs_times_and_keeps_what_is_there(bare: Phone, lite: Artifact) -> None:
    push_tool(bare)
    host = transports.connect(f"adb://{bare.serial}")
    machine, versions = describe_machine("tflite", host)
    assert (machine.cpu, machine.os.split()[:2], machine.python) == ("Maker Seven", ["Android", "14"], "none")
    assert list(versions) == ["benchmark_model"]
    with Worker(lite, transport=host) as worker:
        np.testing.assert_array_equal(worker(X)[0], np.maximum(X, 0))
        assert worker.time((X,), 7) == pytest.approx([252e-6] * 7)
        assert worker.report["by"] == "benchmark_model"
    calls = (bare.folder / "calls").read_text().splitlines()
    assert len([call for call in calls if "--num_runs=1 --min_secs=0" in call]) == 8
    before = bare.sent
    with Worker(lite, transport=host):
        pass
    assert bare.sent - before < 100  # the model was there
    with pytest.raises(Unavailable, match=r"onnxruntime needs one$"):
        describe_machine("onnxruntime", host)


@needs_adb
def test_a_tool_without_outputs_measures_and_says_that_it_verifies_nothing(bare: Phone, lite: Artifact) -> None:
    push_tool(bare, more="--graph")
    with Worker(lite, transport=transports.connect("adb://")) as worker:
        assert len(worker.time((X,), 2)) == 2
        with pytest.raises(Unavailable, match=r"gives no outputs, so nothing can be verified with it; push a newer"):
            worker(X)


@needs_adb
def test_a_model_that_was_cut_or_spoiled_arrives(bare: Phone, lite: Artifact) -> None:
    push_tool(bare)
    host = transports.connect("adb://")
    there = bare.folder / "hnas" / "tool"
    there.mkdir(parents=True)
    whole = lite.model.read_bytes()
    name = f"{lite.files[lite.model.name]}.tflite"
    for found in (whole[:100], b"x" * 100, whole):
        (there / f"{name}.part").write_bytes(found)
        with Worker(lite, transport=host):
            assert (there / name).read_bytes() == whole
        (there / name).unlink()


@needs_adb
def test_a_phone_with_nothing_to_run_is_one_line(bare: Phone) -> None:
    with pytest.raises(
        Unavailable, match=r"no Python 3\.8 with numpy .*, and no .*benchmark_model of TFLite; adb push"
    ):
        transports.connect("adb://")
    with pytest.raises(Unavailable, match=r"has no /nowhere/python3; install Python 3\.8"):
        transports.connect(f"adb://{bare.serial}/nowhere/python3")


def test_the_lines_of_the_tool_are_read() -> None:
    summary = "Inference timings in us: Init: 1, First inference: 9, Warmup (avg): 8, Inference (avg): 7"
    run = f"INFO: count=5 first=9 curr=8 min=7 max=9 avg=8 std=1\nINFO: count=1 curr=%d\n\nINFO: {summary}\nPeak: 1\n"
    assert read_tool_times(run % 7 + run % 1357602) == pytest.approx([7e-6, 1.357602])
    for text, says in (
        ("", "it printed nothing"),
        ("a\nERROR: Failed to load\n", "ERROR: Failed to load"),
        (summary, ""),
    ):
        with pytest.raises(ExportError, match=f"^benchmark_model gave no time: .*{says}"):
            read_tool_times(text)


# --- which phone ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "address", "says"),
    [
        ("", "adb://", "adb sees no device; plug it in and turn on USB debugging"),
        ("a\tunauthorized", "adb://", "adb://a is unauthorized; unlock it, and allow USB debugging"),
        ("a\toffline", "adb://a", "adb://a is offline; plug it in again"),
        (
            "a\tno permissions (user in plugdev group); see [http://x]",
            "adb://a",
            "adb://a is no permissions; this user",
        ),
        ("a\trecovery", "adb://a", "adb://a is recovery; start Android on it"),
        ("a\tdevice\nb\tdevice", "adb://", "adb sees 2 devices; name one: adb://a, adb://b"),
        ("a\tdevice", "adb://c", "adb sees no device 'c'; known: a"),
        ("a\tdevice", "adb://a", "adb://a has no binary shell; Android 7 or newer"),
    ],
)
def test_which_phone_is_meant(
    listed: str, address: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "adb"
    answer = f"List of devices attached\n{listed}\n"
    script.write_text(f"#!/bin/sh\ncase $1 in devices) cat <<'END'\n{answer}END\n;; *) echo cmd;; esac\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(Unavailable) as caught:
        transports.connect(address)
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("address", ["adb://-s", "adb://a b", "adb://x;y", "adb:///\n"])
def test_what_is_no_address_is_one_line(address: str) -> None:
    with pytest.raises(ValueError, match=r"^host is .*, expected adb://"):
        transports.connect(address)


def test_no_adb_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Unavailable, match=r"^adb is not installed; apt-get install adb"):
        transports.connect("adb://")
