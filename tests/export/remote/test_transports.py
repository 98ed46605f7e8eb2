"""Uploads arrive complete or not at all, interrupted ones are resumed, and each error is one line."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hnas.export.device import serve_files as storing
from hnas.export.device.artifact import Artifact, digest_files
from hnas.export.device.errors import Disconnected, ExportError, Unavailable
from hnas.export.device.frames import dispatch
from hnas.export.remote import portable, transports
from hnas.export.remote import upload as sending
from hnas.export.remote.process import ChildProcess
from hnas.export.remote.transports import local, ssh
from hnas.export.remote.upload import Sender
from hnas.export.remote.worker import describe_machine
from tests.export.fake_worker import fake_artifact


class Board:
    """Use this machine as a device: the sent program, a cache of its own, a connection that breaks on demand."""

    where = "test://board"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = folder / "device.pyz"
        self.program.write_bytes(portable.build_zip())
        self.started = 0
        self.before: Any = None  # called in the child before it runs

    def start(self, module: str, environment: Any) -> subprocess.Popen[bytes]:
        self.started += 1
        return subprocess.Popen(
            [sys.executable, "-E", str(self.program), module],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
            env={"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(self.folder), **environment},
            cwd=self.folder, preexec_fn=self.before,  # noqa: PLW1509 - no thread runs here yet
        )  # fmt: skip

    def place(self, path: Path) -> str:
        raise NotImplementedError

    def lost(self, code: int) -> bool:
        return code == -9


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


def an_artifact(folder: Path, size: int = 1_000_000, name: str = "model.onnx") -> Artifact:
    folder.mkdir(parents=True)
    (folder / name).write_bytes(np.random.default_rng(0).bytes(size))
    (folder / "empty.bin").touch()
    artifact = Artifact(folder, "onnxruntime", "fp32", "here", 1, (), (), digest_files(folder, name, "empty.bin"))
    artifact.write()
    return artifact


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# --- files ------------------------------------------------------------------------------------------------------------


def test_an_artifact_arrives_whole_and_once(board: Board) -> None:
    artifact = an_artifact(board.folder / "a")
    sender = Sender(board)
    place = Path(sender.place(artifact.path))
    assert contents(place) == contents(artifact.path)
    assert Artifact.read(place).digest == artifact.digest
    sent = sender._sent
    assert sender.place(artifact.path) == str(place)
    assert (sender._sent, board.started) == (sent, 1)
    sender.close()


def test_a_bare_model_is_placed_by_its_name(board: Board) -> None:
    artifact = an_artifact(board.folder / "a")
    place = Path(Sender(board).place(artifact.path / "model.onnx"))
    assert place.name == "model.onnx"
    assert list(contents(place.parent)) == ["model.onnx"]


def test_what_was_cut_goes_on_where_it_stopped(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = an_artifact(board.folder / "a", 5 * sending.PIECE)
    sender = Sender(board, pause=0.01)
    write = sender._write
    pieces: list[int] = []

    def cutting(source: Path, digest: str, name: str, offsets: range) -> None:
        if len(offsets) > 2:
            pieces.append(2)
            write(source, digest, name, offsets[:2])
            assert sender._process is not None
            sender._process._process.kill()
            sender._process._process.wait()
        pieces.append(len(offsets))
        write(source, digest, name, offsets)

    monkeypatch.setattr(sender, "_write", cutting)
    assert contents(Path(sender.place(artifact.path))) == contents(artifact.path)
    assert board.started == 3
    assert sender._sent == artifact.size_bytes + (artifact.path / "artifact.json").stat().st_size  # each byte once


def test_a_file_that_is_there_already_is_not_sent_again(board: Board) -> None:
    artifact = an_artifact(board.folder / "a")
    sender = Sender(board)
    first = sender.place(artifact.path)
    before = sender._sent
    Artifact(**{**vars(artifact), "notes": {"verified": True}}).write()
    second = sender.place(artifact.path)
    assert second != first
    assert contents(Path(second)) == contents(artifact.path)
    assert sender._sent - before < 10_000  # the record alone


def test_a_link_that_brings_nothing_is_given_up(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = an_artifact(board.folder / "a")
    start = board.start

    def dying(module: str, environment: Any) -> subprocess.Popen[bytes]:
        process = start(module, environment)
        process.kill()
        process.wait()
        return process

    monkeypatch.setattr(board, "start", dying)
    with pytest.raises(Disconnected, match=r"^the connection to test://board was lost on 'begin'$"):
        Sender(board, pause=0.001).place(artifact.path)
    assert board.started == sending.PATIENCE


def test_bytes_that_changed_on_the_way_are_sent_again(board: Board, tmp_path: Path) -> None:
    artifact = an_artifact(board.folder / "a")
    place = Path(Sender(board).place(artifact.path))
    part = place.rename(place.with_name(place.name + ".part"))
    (part / "model.onnx").write_bytes(b"\0" * 600_000)  # an interrupted upload, damaged
    assert contents(Path(Sender(board).place(artifact.path))) == contents(artifact.path)
    (place / "model.onnx").write_bytes(b"rotten")  # a complete upload, damaged
    assert contents(Path(Sender(board).place(artifact.path))) == contents(artifact.path)


def test_a_full_disk_is_one_line_and_what_came_stays(board: Board) -> None:
    artifact = an_artifact(board.folder / "a", 3_000_000)
    board.before = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))
    with pytest.raises(
        ExportError, match=r"^test://board: cannot write .*model\.onnx: File too large; fix that"
    ) as caught:
        Sender(board).place(artifact.path)
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, Disconnected)
    board.before = None
    sender = Sender(board)
    assert contents(Path(sender.place(artifact.path))) == contents(artifact.path)
    assert 0 < sender._sent < 2_500_000


def test_too_little_room_is_told_before_anything_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    free = SimpleNamespace(free=storing.SPARE + 500)
    monkeypatch.setattr(storing.shutil, "disk_usage", lambda _: free)
    answer = dispatch(storing.Store())

    def begin(size: int, digest: str) -> Any:
        return answer({"do": "begin", "digest": digest * 64, "files": [["m", size, "0" * 64]]}, ())[0]

    said = begin(2_000_000, "a")
    assert "has 0.0 MB free, 2.0 MB are needed; make room there" in said["error"]
    assert begin(400, "b")["have"] == [0]


def test_the_longest_unused_artifacts_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing, "KEPT", 3000)
    for age, name in enumerate(("new", "middle", "old")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "m").write_bytes(b"\0" * 1000)
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    storing.make_room(tmp_path, keep=tmp_path / "new", bytes_wanted=1500)
    assert sorted(contents_of.name for contents_of in tmp_path.iterdir()) == ["middle", "new"]


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"do": "begin", "digest": "../up", "files": []}, "expected a sha256"),
        ({"do": "begin", "digest": "a" * 64, "files": [["../up", 1, "0" * 64]]}, "not a plain path inside"),
        ({"do": "write", "digest": "a" * 64, "name": "/etc/passwd", "offset": 0}, "not a plain path inside"),
        ({"do": "nothing"}, "AttributeError"),
    ],
)
def test_the_store_writes_nowhere_else(request_: Any, says: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert says in dispatch(storing.Store())(request_, (np.zeros(1, np.uint8),))[0]["error"]
    assert not list(tmp_path.rglob("*"))


# --- workers ----------------------------------------------------------------------------------------------------------


def test_errors_say_where_they_happened(board: Board) -> None:
    def ask(**header: Any) -> str:
        with (
            ChildProcess(
                "worker", "hnas.export.device.serve_artifacts", environment={}, timeout=300, transport=board
            ) as process,
            pytest.raises((ExportError, ValueError)) as caught,
        ):
            process.ask(header)
        return f"{type(caught.value).__name__} {caught.value}"

    assert ask(do="describe", backend="nope").startswith("ValueError test://board: no runtime 'nope'; known: ")
    assert ask(do="describe", backend="tensorrt").startswith("Unavailable test://board: tensorrt is not installed")


def test_a_signal_behind_a_shell_has_its_name(board: Board) -> None:
    process = ChildProcess("worker", "hnas.export.device.serve_artifacts", environment={}, timeout=300, transport=board)
    process._process.kill()
    process._process.wait()
    process._process.returncode = 139
    with pytest.raises(ExportError, match=r"^worker on test://board died with SIGSEGV on 'run'$"):
        process.ask({"do": "run"})


def test_this_machine_describes_itself() -> None:
    pytest.importorskip("onnxruntime")
    machine, versions = describe_machine("onnxruntime", local)
    assert machine.cores >= 1
    assert list(versions) == ["onnxruntime"]


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "where", "target", "python"),
    [
        ("ssh://Pi", "ssh://Pi", ["--", "Pi"], "python3"),
        ("ssh://me@pi:2222/", "ssh://me@pi:2222", ["-p", "2222", "-l", "me", "--", "pi"], "python3"),
        ("ssh://pi/opt/my env/python", "ssh://pi", ["--", "pi"], "'/opt/my env/python'"),
        ("ssh://pi/~/venv/bin/python", "ssh://pi", ["--", "pi"], '"$HOME"/venv/bin/python'),
        ("ssh://[fe80::1%eth0]:22", "ssh://[fe80::1%eth0]:22", ["-p", "22", "--", "fe80::1%eth0"], "python3"),
    ],
)
def test_an_address_names_host_user_port_and_python(address: str, where: str, target: list[str], python: str) -> None:
    assert ssh._parse(address) == (where, target, python)


@pytest.mark.parametrize(
    "address",
    [
        "ssh://",
        "ssh://-oProxyCommand=x",
        "ssh://-l@pi",
        "ssh://me:secret@pi",
        "ssh://pi:port",
        "ssh://a b",
        "ssh://pi\n",
    ],
)
def test_what_is_no_address_is_one_line(address: str) -> None:
    with pytest.raises(ValueError, match=r"^host is .*, expected ssh://\[user@\]device"):
        transports.connect(address)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("pi", "host is 'pi', expected an address such as ssh://user@device"),
        ("http://pi", "no transport 'http'; known: .*ssh"),
        ("local://x", "transport 'local' has no hosts; leave --host out for this machine"),
    ],
)
def test_an_unknown_transport_is_one_line(address: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        transports.connect(address)


def test_no_ssh_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Unavailable, match="ssh is not installed"):
        transports.connect("ssh://pi")


def test_a_digest_is_of_content(board: Board) -> None:
    first = an_artifact(board.folder / "a", 100)
    shutil.copytree(first.path, board.folder / "b")
    sender = Sender(board)
    assert sender.place(first.path) == sender.place(board.folder / "b")
    lines = sorted((name, hashlib.sha256(data).hexdigest()) for name, data in contents(first.path).items())
    assert (
        Path(sender.place(first.path)).name
        == hashlib.sha256("".join(f"{name} {sha}\n" for name, sha in lines).encode()).hexdigest()
    )
    assert fake_artifact(board.folder / "c").digest
