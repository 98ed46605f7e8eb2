"""Wait for the end of a process, in place of a sleep: the limit is reached only if the process never ends."""

from __future__ import annotations

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
