"""The journal of a run: every finished call, one JSON line each, so that a killed run replays to where it was.

``journal.call(key, work)`` returns the journalled answer, or does the work.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import IO, Any


def digest(record: Any) -> str:
    """Return 16 hex digits of the SHA-256 of ``record`` as canonical JSON: sorted keys, no spaces.

    record: a JSON value, in which frozen records stand for the object of their fields.

    Raises:
        TypeError: the record holds something else, whose text might change from run to run.
    """
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Journal:
    """The answers of finished calls by key.

    file: where they are kept, one line each; None (default): in memory only. A kill may cut the last line, which is
        dropped on opening.
    entries: key -> answer. A key is written once and never changed.
    spent: seconds that all calls took, in this run and in those before it.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.entries: dict[str, Any] = {}
        self.spent = 0.0
        self._stream: IO[bytes] | None = None
        if file is not None:
            self._stream = self._open(file)

    def call(self, key: str, work: Callable[[], Any]) -> Any:
        """Return the journalled answer of ``key``; without one, that of ``work`` (a JSON value), after writing it."""
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
        if cut[:2] != b'["'[: len(cut)]:  # no entry begins like this, so the file is left as it is
            raise ValueError(f"{file} is no journal: its last line is foreign; start afresh in another --out")
        if cut:
            with file.open("r+b") as stream:
                stream.truncate(len(whole))
        return file.open("ab")


def _entry(line: bytes) -> tuple[str, Any, float] | None:
    """Return (key, answer, seconds) of a line that ``call`` wrote, None for any other line."""
    try:
        key, answer, seconds = json.loads(line)
    except (ValueError, TypeError):
        return None
    return (key, answer, seconds) if isinstance(key, str) and isinstance(seconds, float) else None


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{value!r} is no JSON value; a journal key is made of JSON values and records")
