"""The journal of a run: a file with one JSON line for each finished call, so that a killed run can continue.

``journal.call(key, work)`` returns the stored answer of ``key``; without a stored answer it calls ``work``.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from math import inf
from pathlib import Path
from typing import IO, Any


def digest(record: Any) -> str:
    """Return 16 hex digits of the SHA-256 of ``record`` as canonical JSON: sorted keys, no spaces.

    record: a JSON value, which may contain dataclasses. A dataclass is written as the object of its fields.

    Raises:
        TypeError: ``record`` contains another type, whose text could differ between runs.
    """
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Journal:
    """The answers of finished calls by key.

    file: the file with one line for each answer; None (default): answers are kept in memory only. If a kill has cut
        the last line, opening the file removes this line.
    entries: key -> answer. A key is written once and never changed.
    spent: seconds that all calls took, in this run and in earlier runs with the same file.

    Raises:
        ValueError: the file is not a journal.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.entries: dict[str, Any] = {}
        self.spent = 0.0
        self._stream: IO[bytes] | None = None
        if file is not None:
            self._stream = self._open(file)

    def call(self, key: str, work: Callable[[], Any]) -> Any:
        """Return the stored answer of ``key``. Without one, store and return that of ``work`` (a JSON value)."""
        if key not in self.entries:
            begun, before = time.monotonic(), self.spent
            answer = work()
            inner = self.spent - before  # seconds of the calls that ``work`` made, which are counted already
            seconds = round(max(0.0, time.monotonic() - begun - inner), 3)
            self.spent += seconds
            if self._stream is not None:
                self._stream.write(json.dumps([key, answer, seconds]).encode() + b"\n")
                self._stream.flush()
                os.fsync(self._stream.fileno())
            self.entries[key] = answer
        return self.entries[key]

    def close(self) -> None:
        """Close the file. The answers stay in memory."""
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
                raise ValueError(f"{file}, line {number} is not a journal entry; choose another --out")
            key, answer, seconds = entry
            self.entries[key] = answer
            self.spent += seconds
        cut = content[len(whole) :]
        if cut[:2] != b'["'[: len(cut)]:  # not the beginning of an entry: do not change a file of another kind
            raise ValueError(f"{file} is not a journal: its last line is not an entry; choose another --out")
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
    known = isinstance(key, str) and isinstance(seconds, float) and 0 <= seconds < inf
    return (key, answer, seconds) if known else None


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{value!r} is no JSON value; a journal key is made of JSON values and records")
