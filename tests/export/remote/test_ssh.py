"""Workers run behind a real sshd on this machine; cut connections are opened again, and each error is one line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hnas.export.device.artifact import Artifact, TensorSpec, digest_files
from hnas.export.device.errors import Disconnected, ExportError, Unavailable
from hnas.export.proof.timing import compare, measure
from hnas.export.remote import transports
from hnas.export.remote import upload as sending
from hnas.export.remote.transports.ssh import SshHost
from hnas.export.remote.worker import Worker, describe_machine
from tests.export.loopback import SSHD, Loopback, loopback

pytestmark = [
    pytest.mark.skipif(SSHD is None, reason="sshd is not installed; apt-get install openssh-server"),
    pytest.mark.slow,
]
X = np.linspace(-1, 1, 8, dtype=np.float32).reshape(1, 8)
OLD = Path.home() / ".pyenv/versions/3.8.18/bin/python3.8"


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    with loopback(tmp_path_factory.mktemp("board")) as found, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{found.bin}:{os.environ['PATH']}")
        yield found


@pytest.fixture
def host(board: Loopback) -> Iterator[SshHost]:
    """Connect to a device that has the packages of this Python."""
    found = SshHost(f"{board.address}{sys.executable}")
    found._sender._pause = 0.05
    yield found
    found.close()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return relu(tmp_path_factory.mktemp("artifact") / "net")


def relu(folder: Path, ir: int = 8, rubbish: int = 0) -> Artifact:
    """Write max(x, 0) for ONNX Runtime, in a file with ``rubbish`` additional bytes."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, X.shape) for name in "xy"]
    more = onnx.numpy_helper.from_array(np.random.default_rng(0).integers(0, 255, rubbish, np.uint8), "more")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:], [more] if rubbish else []
    )
    model = onnx.helper.make_model(graph, ir_version=ir, opset_imports=[onnx.helper.make_opsetid("", 17)])
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    x, y = (TensorSpec(name, X.shape, "float32") for name in "xy")
    files = digest_files(folder, "model.onnx")
    made = {"onnxruntime": "99.0"}
    artifact = Artifact(folder, "onnxruntime", "fp32", "onnxruntime-cpu", 1, (x,), (y,), files, made)
    artifact.write()
    return artifact


def refused(board: Loopback, address: str) -> str:
    with pytest.raises(ExportError) as caught:
        transports.connect(address)
    assert "\n" not in str(caught.value)
    return f"{type(caught.value).__name__}: {caught.value}".replace(str(board.folder), "FOLDER")


# --- what works -------------------------------------------------------------------------------------------------------


def test_a_net_runs_and_is_measured_there(host: SshHost, board: Loopback, artifact: Artifact) -> None:
    with Worker(artifact, transport=host) as worker:
        np.testing.assert_array_equal(worker(X)[0], np.maximum(X, 0))
    found = measure(artifact, [X], runs=20, transport=host)
    assert len(found.times) >= 10
    ratio = compare(artifact, artifact, [X], blocks=2, runs=2, processes=2, transport=host)
    assert ratio.processes == 2
    machine, versions = describe_machine("onnxruntime", host)
    assert machine.python == sys.version.split()[0]
    assert list(versions) == ["onnxruntime"]
    placed = [path.name for path in (board.cache / "artifacts").iterdir()]
    assert len(placed) == 1
    assert len(placed[0]) == 64  # one folder, complete


def test_a_bare_python_3_8_with_a_real_runtime(board: Loopback, artifact: Artifact) -> None:
    """Use an environment with numpy and onnxruntime alone: no hnas, no torch."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hnas-tests" / "python38"
    if not OLD.is_file():
        pytest.skip(f"there is no Python 3.8 at {OLD}")
    if not (home / "ready").is_file():
        shutil.rmtree(home, ignore_errors=True)
        steps = ([OLD, "-m", "venv", home], [home / "bin/pip", "install", "-q", "numpy", "onnxruntime"])
        for step in steps:
            done = subprocess.run(step, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"numpy and onnxruntime for Python 3.8 cannot be had: {done.stderr.strip()[-200:]}")
        (home / "ready").touch()
    host = SshHost(f"{board.address}{home}/bin/python")
    try:
        machine, _ = describe_machine("onnxruntime", host)
        assert machine.python.startswith("3.8.")
        with Worker(artifact, transport=host) as worker:
            np.testing.assert_array_equal(worker(X)[0], np.maximum(X, 0))
            assert len(worker.time((X,), 5, lead=1)) == 5
            worker.open(artifact)
        alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        listed = subprocess.run(
            [home / "bin/pip", "list"], capture_output=True, text=True, check=True, env=alone
        ).stdout
        assert "hnas" not in listed
        young = relu(board.folder / "young", ir=11)
        with pytest.raises(
            ExportError, match=r"^ssh://board: onnxruntime cannot open .* \(made with onnxruntime 99\.0, here is 1\."
        ) as caught:
            Worker(young, transport=host)
        assert "model IR version" in str(caught.value)
        assert "\n" not in str(caught.value)
    finally:
        host.close()


def test_one_connection_serves_many_commands(host: SshHost, board: Loopback, artifact: Artifact) -> None:
    before = (board.folder / "log").read_text().count("Accepted publickey")
    for _ in range(2):
        with Worker(artifact, transport=host) as worker:
            worker(X)
    assert (board.folder / "log").read_text().count("Accepted publickey") == before


def test_a_path_in_the_home_folder(board: Loopback) -> None:
    inside = os.path.relpath(sys.executable, Path.home())
    SshHost(f"{board.address}/~/{inside}").close()


# --- a link that breaks -----------------------------------------------------------------------------------------------


def test_a_cut_transfer_goes_on_where_it_stopped(host: SshHost, board: Loopback) -> None:
    large = relu(board.folder / "large", rubbish=3_000_000)
    board.link.cut_after(1_000_000)
    before = board.link.sent
    place = Path(host.place(large.path))
    assert Artifact.read(place).digest == large.digest
    assert board.link.sent - before < 3_000_000 + 2 * sending.PIECE + 300_000  # at most one piece is sent twice
    with Worker(large, transport=host) as worker:
        np.testing.assert_array_equal(worker(X)[0], np.maximum(X, 0))


def test_a_link_that_stays_down_is_one_line_and_nothing_is_lost(host: SshHost, board: Loopback) -> None:
    large = relu(board.folder / "larger", rubbish=2_000_000)
    board.link.cut_after(1_000_000, down=True)
    with pytest.raises(Unavailable, match=r"connection to ssh://board") as caught:
        host.place(large.path)
    assert "\n" not in str(caught.value)
    board.link.down = False
    before = board.link.sent
    assert Artifact.read(host.place(large.path)).digest == large.digest  # the same host connects again
    assert board.link.sent - before < 1_700_000


def test_a_worker_whose_link_is_cut_is_one_line_and_the_next_one_works(
    host: SshHost, board: Loopback, artifact: Artifact
) -> None:
    with Worker(artifact, transport=host) as worker:
        worker(X)
        board.link.cut()
        with pytest.raises(Disconnected, match=r"^the connection to ssh://board was lost on 'run'") as caught:
            worker(X)
        assert "\n" not in str(caught.value)
    with Worker(artifact, transport=host) as worker:
        np.testing.assert_array_equal(worker(X)[0], np.maximum(X, 0))


def test_a_client_that_is_killed_ends_the_device_side_too(host: SshHost, artifact: Artifact) -> None:
    before = serving(host)
    worker = Worker(artifact, transport=host)
    mine = serving(host) - before
    assert mine
    worker._process.kill()
    worker._process.wait()  # its connection lasts until it is dead
    with pytest.raises(Disconnected):
        worker(X)
    end = time.monotonic() + 300
    while left := serving(host) & mine:
        assert time.monotonic() < end, f"the worker outlived its connection: {left}"
        time.sleep(0.1)


def serving(host: SshHost) -> set[int]:
    """Return the processes of workers behind ``host``, which is this machine, too."""
    listed = subprocess.run(["ps", "-wweo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return {
        int(line.split()[0])
        for line in listed.splitlines()
        if f"{host._program} hnas.export.device.serve_artifacts" in line
    }


# --- what is missing there --------------------------------------------------------------------------------------------


def test_what_a_device_lacks_is_one_line(board: Loopback, tmp_path: Path) -> None:
    said = refused(board, f"{board.address}/nowhere/python3")
    assert said == (
        "Unavailable: ssh://board has no /nowhere/python3; "
        "install Python 3.8 or newer, or name one: ssh://board/path/of/python3"
    )
    scripts: dict[str, tuple[str, str]] = {
        "old": ('echo "hnas old 3.6"', "Unavailable: ssh://board has Python 3.6, 3.8 or newer is needed"),
        "bare": (f'exec {sys.executable} -S -I "$@"', "Unavailable: numpy is not installed for"),
        "dying": ("echo Illegal instruction >&2; exit 132", "ended with 132: Illegal instruction"),
    }
    for name, (script, says) in scripts.items():
        python = tmp_path / name
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        assert says in refused(board, f"{board.address}{python}")


def test_a_missing_runtime_is_one_line(host: SshHost) -> None:
    with pytest.raises(Unavailable, match=r"^ssh://board: tensorrt is not installed"):
        describe_machine("tensorrt", host)


def test_a_cache_that_cannot_be_written_is_one_line(board: Loopback) -> None:
    there = board.cache
    hidden = there.rename(there.with_name("hidden"))
    there.touch()  # a file where the folder should be
    try:
        said = refused(board, f"{board.address}{sys.executable}")
    finally:
        there.unlink()
        hidden.rename(there)
    assert said.startswith("ExportError: ssh://board cannot store the program of hnas: ")


def test_a_full_disk_is_one_line_and_goes_on_later(host: SshHost, board: Loopback) -> None:
    large = relu(board.folder / "full", rubbish=1_500_000)
    plain = host._python
    host._python = f"ulimit -f 1024; {plain}"  # 512-byte blocks of dash: half a megabyte
    with pytest.raises(ExportError, match=r"^ssh://board: cannot write .*/model\.onnx: File too large; fix") as caught:
        host.place(large.path)
    assert "\n" not in str(caught.value)
    host._sender.close()
    host._python = plain
    assert Artifact.read(host.place(large.path)).digest == large.digest


# --- who may connect --------------------------------------------------------------------------------------------------


def test_a_connection_that_is_refused_says_what_to_do(board: Loopback, monkeypatch: Any) -> None:
    config, known = board.folder / "config", board.folder / "known"
    text, keys = config.read_text(), known.read_text()
    try:
        config.write_text(text.replace(f"{board.folder}/client", f"{board.folder}/host"))
        assert "ssh ssh://board must work without a password: add a key with ssh-copy-id" in refused(
            board, "ssh://board"
        )
        config.write_text(text)
        known.write_text("")
        assert "connect once by hand: ssh ssh://board" in refused(board, "ssh://board")
        known.write_text(keys)
        board.link.down = True
        assert refused(board, "ssh://board").startswith("Unavailable: no connection to ssh://board: ")
    finally:
        config.write_text(text)
        known.write_text(keys)
        board.link.down = False
