"""The journal of a run: a file with one JSON line for each finished call, so that a killed run can continue.

``journal.call(key, work)`` returns the stored answer of ``key``; without a stored answer it calls ``work``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from math import inf
from pathlib import Path
from typing import IO, Any
from zlib import crc32

from hnas.files import parse_number, read_plain

_LOG = logging.getLogger("hnas")
_LARGEST = 2**28  # bytes of a journal
_CHECK = len(', "01234567"]')


def digest(record: Any) -> str:
    """Return 16 hex digits of the SHA-256 of ``record`` as canonical JSON: sorted keys, no spaces.

    record: a JSON value, which may contain dataclasses. A dataclass is written as the object of its fields.

    Raises:
        TypeError: ``record`` contains another type, whose text could differ between runs.
    """
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Journal:
    """Hold the answers of finished calls by key.

    file: the file with one line for each answer; None (default): answers are kept in memory only. If a kill has cut
        the last line, or a power loss has left zeros there, opening the file removes this line and logs a warning.
    entries: key -> answer. A key is written once and never changed.
    spent: seconds that all calls took, in this run and in earlier runs with the same file.

    Raises:
        ValueError: the file is not a journal, or a line before the last one is damaged.
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
                self._stream.write(_line(key, answer, seconds))
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
        content = read_plain(file, _LARGEST) if file.exists() else b""
        entries, good = _read(content, file)
        for key, answer, seconds in entries:
            self.entries[key] = answer
            self.spent += seconds
        if content[good:]:
            with file.open("r+b") as stream:
                stream.truncate(good)
            _LOG.warning("%s ended in an incomplete line, which is removed; that call is repeated", file)
        return file.open("ab")


def read_entries(file: Path) -> dict[str, Any]:
    """Return key -> answer of a journal without opening it for writing. An incomplete end is left out.

    Raises:
        ValueError: the file is not a journal, or a line before the last one is damaged.
    """
    entries, _ = _read(read_plain(file, _LARGEST), file)
    return {key: answer for key, answer, _ in entries}


def _read(content: bytes, file: Path) -> tuple[list[tuple[str, Any, float]], int]:
    """Return the entries of a journal, and the number of bytes that they have."""
    found: list[tuple[str, Any, float]] = []
    good = 0
    for line in content.split(b"\n")[:-1]:
        entry = _entry(line)
        if entry is None:
            break
        found.append(entry)
        good += len(line) + 1
    rest = content[good:]
    if rest and not _torn(rest):
        number = content.count(b"\n", 0, good) + 1
        raise ValueError(f"{file}, line {number} is not a journal entry, or is damaged; choose another --out")
    return found, good


def _line(key: str, answer: Any, seconds: float) -> bytes:
    """Return the line of an answer: a JSON list whose last item is a checksum of the others."""
    text = json.dumps([key, answer, seconds]).encode()
    return text[:-1] + b', "%08x"]\n' % crc32(text)


def _entry(line: bytes) -> tuple[str, Any, float] | None:
    """Return (key, answer, seconds) of a line that ``_line`` returned, None for any other line.

    Lines of older versions have no checksum.
    """
    try:
        key, answer, seconds, *check = json.loads(line, parse_float=parse_number)
    except (ValueError, TypeError, RecursionError):
        return None
    known = isinstance(key, str) and isinstance(seconds, float) and 0 <= seconds < inf
    whole = not check or check == [f"{crc32(line[:-_CHECK] + b']'):08x}"]
    return (key, answer, seconds) if known and whole else None


def _torn(rest: bytes) -> bool:
    """Return whether ``rest``, the end of a journal, is what a kill or a power loss leaves of the last entries.

    1. The beginning of a line.
    2. Zeros, perhaps after the beginning of a line, and no entry after them.
    """
    begin, zeros, _ = rest.partition(b"\0")
    if begin[:2] != b'["'[: len(begin)] or b"\n" in begin:  # a file of another kind, or a damaged line
        return False
    return not zeros or not any(map(_entry, rest.split(b"\n")))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{value!r} is no JSON value; a journal key is made of JSON values and records")
