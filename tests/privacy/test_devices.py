"""A device behind ssh or adb: neither this machine nor the device talks to anybody else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ending import wait_until_open
from tests.export.loopback import SSHD, free_port, loopback
from tests.export.standin_phone import Phone, phone
from tests.privacy.tracing import STRACE, addresses, deploy, entry, outside, require_strace, traced

pytestmark = pytest.mark.slow
BUILD = ("--model", "mine:build", "--input", "1x4", "--threads", "1")


def traced_python(folder: Path) -> Path:
    """Return a python3 that runs under strace, with its traces beside it."""
    folder.mkdir()
    python = folder / "python3"
    python.write_text(f'#!/bin/sh\nexec {" ".join(STRACE)} {folder}/trace.$$ {sys.executable} "$@"\n')
    python.chmod(0o755)
    return python


def sent_by(folder: Path) -> list[str]:
    """Return the addresses outside this machine in the traces of ``traced_python``."""
    traces = list(folder.glob("trace.*"))
    assert traces, "the device ran nothing"
    return [address for trace in traces for address in addresses(trace)]


@pytest.mark.skipif(SSHD is None or shutil.which("ssh") is None, reason="no sshd or no ssh")
def test_nothing_is_sent_here_or_there_over_ssh(folder: Path) -> None:
    require_strace()
    python = traced_python(folder / "there")
    with loopback(folder / "board") as board:
        host = ("--host", f"{board.address}{python}", "--out", "away")
        path = f"{board.bin}{os.pathsep}{os.environ['PATH']}"
        assert traced(folder, *deploy("export", *BUILD, "--target", "raspberry-pi-5", *host), PATH=path) == []
    assert sent_by(folder / "there") == []


@pytest.fixture
def attached(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Phone]:
    """Connect a phone to an adb server of the test's, which runs under strace. The phone's python3 does too."""
    if shutil.which("adb") is None:
        pytest.skip("adb is not installed; apt-get install adb")
    require_strace()
    python = traced_python(folder / "phone")
    port = str(free_port())
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", port)
    monkeypatch.setenv("ANDROID_SDK_HOME", str(folder / "home"))
    command = [*STRACE, str(folder / "adb"), "adb", "-P", port, "nodaemon", "server"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until_open(int(port))
        with phone(folder / "tmp", {"PATH": f"{python.parent}:/usr/bin:/bin"}) as found:
            said = subprocess.run(["adb", "connect", found.serial], check=True, capture_output=True, text=True).stdout
            assert "connected to" in said
            yield found
    finally:
        subprocess.run(["adb", "kill-server"], check=False, capture_output=True)
        server.terminate()
        server.wait()


def test_nothing_is_sent_here_or_there_over_adb(folder: Path, attached: Phone) -> None:
    made = deploy("export", *BUILD, "--target", "onnxruntime-cpu", "--out", "phoned")
    subprocess.run([sys.executable, *made], cwd=folder, env=outside(folder), check=True, capture_output=True)
    quick = ("--host", f"adb://{attached.serial}", "--processes", "1", "--max-time", "5s")
    check = entry("hnas.benchmarks.cli.main", "check", "phoned/bundle", *quick)
    assert traced(folder, *check, codes=(0, 1, 4)) == []
    assert sent_by(folder / "phone") == []
    assert addresses(folder / "adb") == []
