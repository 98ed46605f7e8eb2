"""Files that are complete or unchanged, and folders that one process locks."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hnas import files
from hnas.files import locked, read_json, read_tensors, write_json, write_text

HOLD = """
import sys
from pathlib import Path
from hnas.files import locked
with locked(Path({folder!r})):
    print(flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """Start a process that locks ``folder`` until it is killed."""
    command = [sys.executable, "-c", HOLD.format(folder=str(folder))]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


# --- locked -----------------------------------------------------------------------------------------------------------


def test_case_1_a_folder_is_held_by_one_process_and_let_go_when_it_dies(tmp_path: Path) -> None:
    process = holder(tmp_path / "run")
    try:
        assert process.stdout is not None
        process.stdout.readline()
        with (
            pytest.raises(ValueError, match=rf"another run is using .*run \(process {process.pid}\); wait for"),
            locked(tmp_path / "run"),
        ):
            pytest.fail("it is held")
        assert (tmp_path / "run" / files.LOCK).exists()
    finally:
        kill(process)
    with locked(tmp_path / "run"):
        assert (tmp_path / "run" / files.LOCK).read_text() == f"{os.getpid()}\n"


def test_a_folder_is_held_against_the_same_process_too_and_free_afterwards(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    for _ in range(2):
        with locked(tmp_path), pytest.raises(ValueError, match="another run is using"), locked(tmp_path):
            pytest.fail("it is held")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_lock_on_a_file_that_was_removed_in_between_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, calls = fcntl.flock, []

    def remove_first(stream: Any, how: int) -> None:
        lock(stream, how)
        calls.append(how)
        if len(calls) == 1:
            (tmp_path / files.LOCK).unlink()

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with locked(tmp_path):
        assert len(calls) == 2
        assert (tmp_path / files.LOCK).exists()


def test_case_2_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"cannot write to .*; choose another --out"), locked(place):
            pytest.fail("there is no such folder")


def test_case_2_a_lock_that_is_a_link_touches_nothing(tmp_path: Path) -> None:
    (tmp_path / "thesis").write_text("years of work")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / files.LOCK).symlink_to(tmp_path / "thesis")
    with pytest.raises(ValueError, match="cannot write to"), locked(tmp_path / "run"):
        pytest.fail("a link is no lock")
    assert (tmp_path / "thesis").read_text() == "years of work"


def test_case_3_a_file_system_without_locks_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with locked(tmp_path):
        pass


def test_case_4_a_new_folder_that_is_empty_goes_and_any_other_stays(tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    for name in ("given", "empty"):
        with locked(tmp_path / name):
            pass
    with locked(tmp_path / "full"):
        (tmp_path / "full" / "a").write_text("")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "given"]


# --- write_text -------------------------------------------------------------------------------------------------------


def test_a_write_that_fails_leaves_nothing_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a", "first")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_text(tmp_path / "a", "second")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "first")]


def test_a_pipe_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match="pipe is a device or a pipe, and no file"):
        files.write_text(tmp_path / "pipe", "text")
    assert (tmp_path / "pipe").is_fifo()


def test_what_a_killed_process_left_goes_with_the_next_write_and_nothing_else(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    for name in (f".a.json.{dead.pid}", f".a.json.{os.getppid()}", ".a.json.mine", f".b.json.{dead.pid}"):
        (tmp_path / name).write_text("half")
    write_json(tmp_path / "a.json", {"x": 1})
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted(["a.json", f".a.json.{os.getppid()}", ".a.json.mine", f".b.json.{dead.pid}"])


@pytest.mark.parametrize("content", [b'{"a": 1e999}', b'{"a": NaN', b"[" * 100_000, b"[]", b"\xff"])
def test_what_is_no_json_object_is_one_line(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_json(tmp_path / "a")
    assert "\n" not in str(caught.value)


def test_a_pipe_and_a_terabyte_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 2**40)
    for name in ("pipe", "large"):
        for read in (read_json, read_tensors):
            with pytest.raises(ValueError, match=r"not a plain file|at most"):
                read(tmp_path / name)
