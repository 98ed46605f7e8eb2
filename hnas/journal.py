"""The journal of a run: every finished call, one JSON line each, so that a killed run replays to where it was."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


class Journal:
    """Answers of finished calls by key; in memory only when ``file`` is None.

    A kill may cut the last line; it is dropped on opening. Keys are written once and never changed. ``spent`` is the
    seconds that all calls took, this run's and those before it.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.entries: dict[str, Any] = {}
        self.spent = 0.0
        self._stream: IO[bytes] | None = None
        if file is not None:
            self._stream = self._open(file)

    def call(self, key: str, work: Callable[[], Any]) -> Any:
        """The journalled answer of ``key``, or what ``work`` returns (a JSON value), written before it is used."""
        if key not in self.entries:
            begun, before = time.monotonic(), self.spent
            answer = work()
            inner = self.spent - before  # of calls that this one made: they have counted themselves
            seconds = round(max(0.0, time.monotonic() - begun - inner), 3)
            self.spent += seconds
            if self._stream is not None:
                self._stream.write(json.dumps([key, answer, seconds]).encode() + b"\n")
                self._stream.flush()
                os.fsync(self._stream.fileno())
            self.entries[key] = answer
        return self.entries[key]

    def close(self) -> None:
        """Close the file; answers stay."""
        if self._stream is not None:
            self._stream.close()

    def __contains__(self, key: str) -> bool:
        return key in self.entries

    def _open(self, file: Path) -> IO[bytes]:
        content = file.read_bytes() if file.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            entry = _entry(line)
            if entry is None:
                raise ValueError(f"{file}, line {number} is no journal entry; start afresh in another --out")
            key, answer, seconds = entry
            self.entries[key] = answer
            self.spent += seconds
        cut = content[len(whole) :]
        if cut[:2] != b'["'[: len(cut)]:  # nothing of ours begins like this, so nothing is truncated
            raise ValueError(f"{file} is no journal: its last line is foreign; start afresh in another --out")
        if cut:
            with file.open("r+b") as stream:
                stream.truncate(len(whole))
        return file.open("ab")


def _entry(line: bytes) -> tuple[str, Any, float] | None:
    """(key, answer, seconds) of a line that ``call`` wrote, None for any other."""
    try:
        key, answer, seconds = json.loads(line)
    except (ValueError, TypeError):
        return None
    return (key, answer, seconds) if isinstance(key, str) and isinstance(seconds, float) else None
