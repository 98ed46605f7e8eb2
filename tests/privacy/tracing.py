"""Test that nothing is sent: every command and the library run under strace, and only local sockets may appear.

The processes run outside pytest with an empty home, because NNCF switches its telemetry off under pytest or in CI.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hnas.export.device.privacy import SWITCHES
from tests.export.loopback import SSHD, loopback

ROOT = Path(__file__).resolve().parent.parent
CONNECTION = re.compile(
    r"(?:connect|sendto|sendmsg|sendmmsg|bind)\(.*?(?:inet_addr|inet_pton\(AF_INET6, )\(?\"([^\"]+)\""
)
TRAIN = ("--recipe", "images", "--data", "photos", "--epochs", "1")
LOCAL = ("127.", "::1", "0.0.0.0", "::")

LIBRARY = """
import sys, torch
from hnas import export
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
samples = [(torch.randn(1, 3, 16, 16),) for _ in range(8)]
artifact = export.compile(net, samples[0], device=sys.argv[1], precision="int8", calibration=samples, path=sys.argv[1])
export.measure(artifact, [samples[0][0].numpy()], budget_s=0.2)
"""
SESSION = """
import time, onnxruntime
from onnx import TensorProto, helper
x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
session = onnxruntime.InferenceSession(model.SerializeToString())
time.sleep(2)
"""
# NNCF and OpenVINO share a sender. Outside pytest and CI, and without a file of consent, it reports by default.
QUANTISED = """
import sys, time
if sys.argv[1] == "quiet":
    import hnas
import numpy as np, nncf, openvino
from openvino import opset13 as ops
x = ops.parameter([1, 3, 8, 8], np.float32, name="x")
y = ops.convolution(x, ops.constant(np.ones((4, 3, 3, 3), np.float32)), [1, 1], [0, 0], [0, 0], [1, 1])
nncf.quantize(openvino.Model([ops.result(y)], [x]), nncf.Dataset([np.zeros((1, 3, 8, 8), np.float32)]))
time.sleep(4)
"""
EXPORTED = "import torch\ndef build():\n    torch.manual_seed(0)\n    return torch.nn.Linear(4, 3)\n"


def _strace_works() -> bool:
    command = ("strace", "-f", "-e", "trace=network", "true")
    return (
        shutil.which("strace") is not None and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


def _require_strace() -> None:
    if not _strace_works():
        if os.environ.get("CI"):
            pytest.fail("strace is missing or may not trace; CI has to see that nothing is sent")
        pytest.skip("strace is missing or may not trace here; apt-get install strace")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two empty homes, a few photographs of two classes, and a module with a network."""
    folder = tmp_path_factory.mktemp("traced")
    (folder / "home").mkdir()
    (folder / "loud").mkdir()
    (folder / "mine.py").write_text(EXPORTED)
    (folder / "library.py").write_text(LIBRARY)
    random = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (folder / "photos" / name).mkdir(parents=True)
        for index in range(40):
            pixels = random.integers(0, 255, (20, 20, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{index}.png")
    return folder


def traced(folder: Path, *command: str, home: str = "home", **more: str) -> list[str]:
    """Return the addresses outside this machine that a command and its children talk to, looked-up names included."""
    hidden = (*SWITCHES, "CI", "PYTEST_CURRENT_TEST", "PYTEST_VERSION")
    environment = {k: v for k, v in {**os.environ, **more}.items() if k not in hidden}
    environment |= {"HOME": str(folder / home), "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{folder}"}
    environment.pop("XDG_CACHE_HOME", None)
    trace = folder / "trace"
    done = subprocess.run(
        [
            "strace",
            "-f",
            "--seccomp-bpf",
            "-s",
            "256",
            "-e",
            "trace=network",
            "-o",
            str(trace),
            sys.executable,
            *command,
        ],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode in (0, 1, 4), done.stderr[-2000:]
    return addresses(trace)


def addresses(trace: Path) -> list[str]:
    """Return the addresses outside this machine in a file that strace wrote."""
    found = CONNECTION.findall(trace.read_text(errors="replace"))
    return [address for address in found if not address.startswith(LOCAL)]


def entry(function: str, *arguments: str) -> Sequence[str]:
    """Return the words after ``python`` that run a command as its entry point does."""
    module, _, name = function.rpartition(".")
    return ("-c", f"import sys; from {module} import {name}; sys.exit({name}(sys.argv[1:]))", *arguments)


def deploy(*arguments: str) -> Sequence[str]:
    return entry("hnas.cli.deploy_main", *arguments)


@pytest.mark.slow
def test_the_check_sees_a_look_up(folder: Path) -> None:
    _require_strace()
    code = "import socket\ntry: socket.getaddrinfo('telemetry.invalid', 443)\nexcept OSError: pass"
    assert traced(folder, "-c", code), "a look-up of a name went unseen"


@pytest.mark.slow
def test_the_check_sees_a_runtime_that_is_not_silenced(folder: Path) -> None:
    """Without our switch ONNX Runtime looks up its event host, or keeps an identity in the home until it does."""
    _require_strace()
    (folder / "session.py").write_text(SESSION)
    sent = traced(folder, "session.py", home="loud")
    assert sent or list((folder / "loud").rglob("deviceid")), "if ONNX Runtime has become quiet, this test may go"


@pytest.mark.slow
def test_the_sender_of_openvino_and_nncf_is_seen_and_silenced(folder: Path) -> None:
    _require_strace()
    pytest.importorskip("nncf")
    (folder / "quantised.py").write_text(QUANTISED)
    assert traced(folder, "quantised.py", "loud", home="loud"), "if NNCF has become quiet, this test may go"
    assert traced(folder, "quantised.py", "quiet") == []
    assert not list((folder / "home").rglob("openvino_ga_cid"))


@pytest.mark.slow
@pytest.mark.skipif(SSHD is None or shutil.which("ssh") is None, reason="no sshd or no ssh")
def test_nothing_is_sent_here_or_there_with_a_host(folder: Path) -> None:
    """The Python of the device runs under strace too."""
    _require_strace()
    there = folder / "there"
    there.mkdir()
    python = there / "python3"
    inner = f"strace -f --seccomp-bpf -s 256 -e trace=network -o {there}/trace.$$ {sys.executable}"
    python.write_text(f'#!/bin/sh\nexec {inner} "$@"\n')
    python.chmod(0o755)
    with loopback(folder / "board") as board:
        words = ("--model", "mine:build", "--input", "1x4", "--target", "raspberry-pi-5", "--threads", "1")
        host = ("--host", f"{board.address}{python}", "--out", "away")
        path = f"{board.bin}{os.pathsep}{os.environ['PATH']}"
        assert traced(folder, *deploy("export", *words, *host), PATH=path) == []
    traces = list(there.glob("trace.*"))
    assert traces, "the device ran nothing"
    assert [address for trace in traces for address in addresses(trace)] == []


@pytest.mark.slow
@pytest.mark.parametrize("device", ["onnxruntime-cpu", "openvino-cpu", "tflite-cpu"])
def test_the_library_sends_nothing(folder: Path, device: str) -> None:
    _require_strace()
    assert traced(folder, "library.py", device) == []


@pytest.mark.slow
def test_the_commands_send_nothing(folder: Path) -> None:
    _require_strace()
    bundle = "out/bundle"
    commands = [
        deploy("targets"),
        deploy("doctor"),
        deploy("export", "--model", "mine:build", "--input", "1x4", "--target", "onnxruntime-cpu", "--out", "out"),
        deploy("show", bundle),
        deploy("verify", bundle, "--model", "mine:build"),
        deploy("--target", "openvino-cpu", "--dry-run"),
        deploy("export", "--model", "mine:build", "--input", "1x4", "--target", "openvino-cpu", "--out", "out-ov"),
        deploy("export", "--model", "mine:build", "--input", "1x4", "--target", "tflite-cpu", "--out", "out-lite"),
        deploy("show", bundle, "--layers"),
        entry("hnas.benchmarks.cli.main", "check", bundle, "--here"),
        entry("hnas.benchmarks.cli.main", "compare", bundle, "out-ov/bundle", "--processes", "1", "--max-time", "10s"),
        entry("hnas.cli.train_main", *TRAIN, "--out", "net"),
        deploy(
            "--target", "openvino-cpu", "--supernet", "net", "--data", "photos", "--budget", "2evals", "--out", "run"
        ),
        deploy("run", "run/bundle", "--image", "photos/cats/0.png"),
        deploy("verify", "run/bundle", "--supernet", "net", "--data", "photos"),
        entry("hnas.cli.train_main", *TRAIN, "--out", "alone", "--alone", "smallest", "--supernet", "net"),
    ]
    sent = {" ".join(command): traced(folder, *command) for command in commands}
    assert not {command: addresses for command, addresses in sent.items() if addresses}
    left = sorted(str(path.relative_to(folder / "home")) for path in (folder / "home").rglob("*") if path.is_file())
    assert not [path for path in left if not path.startswith(".cache/hnas/")], "something wrote into the user's home"
