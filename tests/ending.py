"""Wait for the beginning or the end of a process, in place of a sleep: a limit is reached only if that never comes."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from pathlib import Path


def wait_until_ended(pid: int, seconds: float = 120.0) -> None:
    """Return when the process ``pid`` is gone or a zombie. Raise TimeoutError after ``seconds``."""
    end = time.monotonic() + seconds
    with suppress(OSError):  # its files are gone
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            if time.monotonic() > end:
                raise TimeoutError(f"process {pid} has not ended in {seconds:g} s")
            time.sleep(0.01)


def wait_until_open(port: int, seconds: float = 120.0) -> None:
    """Return when a process on this machine accepts connections at ``port``. Raise OSError after ``seconds``."""
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return
