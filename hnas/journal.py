"""The journal of a run: every finished call, one JSON line each, so that a killed run replays to where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


class Journal:
    """Answers of finished calls by key; in memory only when ``file`` is None.

    A kill may cut the last line; it is dropped on opening. Keys are written once and never changed.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.entries: dict[str, Any] = {}
        self._stream: IO[bytes] | None = None
        if file is not None:
            self._stream = self._open(file)

    def call(self, key: str, work: Callable[[], Any]) -> Any:
        """The journalled answer of ``key``, or what ``work`` returns (a JSON value), written before it is used."""
        if key not in self.entries:
            answer = work()
            if self._stream is not None:
                self._stream.write(json.dumps([key, answer]).encode() + b"\n")
                self._stream.flush()
                os.fsync(self._stream.fileno())
            self.entries[key] = answer
        return self.entries[key]

    def __contains__(self, key: str) -> bool:
        return key in self.entries

    def _open(self, file: Path) -> IO[bytes]:
        content = file.read_bytes() if file.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                key, answer = json.loads(line)
            except (json.JSONDecodeError, ValueError):
                raise ValueError(f"{file}, line {number} is no journal entry; start afresh in another --out") from None
            self.entries[key] = answer
        if len(whole) != len(content):
            with file.open("r+b") as stream:
                stream.truncate(len(whole))
        return file.open("ab")
