"""Temporary folders go with their block, and those of killed processes with the next folder."""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest

from hnas.export.remote.scratch import PREFIX, Scratch

HOLD = """
import sys
from pathlib import Path
from hnas.export.remote.scratch import Scratch
with Scratch({prefix!r}, Path({parent!r})) as folder:
    (folder / "half").write_text("half")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def hold(parent: Path, prefix: str = PREFIX) -> tuple[subprocess.Popen[str], Path]:
    """Start a process that holds a folder until it is killed, and return both."""
    code = HOLD.format(prefix=prefix, parent=str(parent))
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_folder_goes_with_its_block(root: Path) -> None:
    with Scratch() as folder:
        (folder / "a").write_text("")
        assert folder.parent == root
    assert list(root.iterdir()) == []


def test_a_folder_goes_with_a_process_that_ends_without_closing_it(root: Path) -> None:
    code = "import sys; from pathlib import Path; from hnas.export.remote.scratch import Scratch\n"
    code += "kept = Scratch(parent=Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(root)], check=True, capture_output=True)
    assert list(root.iterdir()) == []


def test_a_folder_that_nobody_closes_goes_without_a_warning(root: Path) -> None:
    scratch, opened = Scratch(), len(list(Path("/proc/self/fd").iterdir()))
    folder = scratch.path
    del scratch
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gc.collect()
    assert not folder.exists()
    assert len(list(Path("/proc/self/fd").iterdir())) == opened - 1


def test_what_a_killed_process_left_goes_and_what_a_living_one_holds_stays(root: Path) -> None:
    foreign = root / f"{PREFIX}somebody-else"
    foreign.mkdir()
    process, left = hold(root)
    try:
        with Scratch():
            assert left.exists()
    finally:
        kill(process)
    assert left.exists()
    with Scratch():
        assert not left.exists()
    assert list(root.iterdir()) == [foreign]


def test_a_longer_prefix_is_not_swept(root: Path) -> None:
    process, left = hold(root, ".net.older.")
    kill(process)
    with Scratch(".net.", root):
        assert left.exists()


def test_a_left_folder_can_be_rescued_before_it_goes(root: Path) -> None:
    process, left = hold(root)
    kill(process)
    with Scratch(rescue=lambda folder: (folder / "half").rename(root / "whole")):
        assert (root / "whole").read_text() == "half"
        assert not left.exists()


def test_without_locks_nothing_is_swept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process, left = hold(root)
    kill(process)

    def none(*_: Any) -> None:
        raise OSError("No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with Scratch() as folder:
        assert folder.exists()
    assert list(root.iterdir()) == [left]


def test_a_lock_that_is_a_link_or_a_pipe_is_left_alone(root: Path) -> None:
    for name, make in (("link", lambda path: path.symlink_to("/dev/zero")), ("pipe", os.mkfifo)):
        (root / f"{PREFIX}{name}").mkdir()
        make(root / f"{PREFIX}{name}" / ".lock")
    with Scratch():
        assert (root / f"{PREFIX}link").exists()
