"""Keep the runs of suites as JSON lines, and find steps in them: ``read_history(file)``, ``find_step(ratios)``.

A line has a checksum. What a kill left of the last line is ignored, and removed by the next run.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

if TYPE_CHECKING:
    from hnas.benchmarks.gate.suite_records import SuiteReport

_LARGEST = 2**28  # bytes of a history
_BEGIN = '{"check": "'
_ALARM = 0.01
"""The chance that a series without a step is said to have one, if its runs are independent."""
_ORDERS = 1999  # random orders, with which the order of the runs is compared
_SIDE = 3  # the fewest runs on each side of a step
_NEWEST = 200  # runs in which a step is searched


@dataclass(frozen=True)
class Recorded:
    """One claim of one run.

    time: of its end, ISO 8601 in UTC.
    revision: the commit, where the CI system or git names it.
    ratio, low, high: the factor and its interval; None: nothing was timed.
    artifact, baseline: digests of the files.
    """

    time: str
    suite: str
    claim: str
    measure: str
    outcome: str
    word: str
    ratio: float | None
    low: float | None
    high: float | None
    processor: str
    artifact: str
    baseline: str
    revision: str = ""

    def __post_init__(self) -> None:
        figures = [value for value in (self.ratio, self.low, self.high) if value is not None]
        if len(figures) not in (0, 3) or any(value <= 0 for value in figures):
            raise ValueError("ratio, low and high are all numbers above 0, or all missing")


@dataclass(frozen=True)
class _LevelStep:
    """A change of the level of a series: the run at which it begins, and the factor of the levels."""

    at: int
    factor: float


def records_of(report: SuiteReport, revision: str) -> list[Recorded]:
    """Return one record for each claim of a report, of this moment. ``revision``: the commit, or empty."""
    from datetime import UTC, datetime

    now = datetime.now(UTC).isoformat(timespec="seconds")
    return [
        Recorded(
            time=now,
            suite=report.suite,
            claim=claim.name,
            measure=claim.measure,
            outcome=claim.outcome,
            word=claim.word,
            ratio=claim.speed.value if claim.speed else None,
            low=claim.speed.low if claim.speed else None,
            high=claim.speed.high if claim.speed else None,
            processor=report.processor,
            artifact=claim.artifact,
            baseline=claim.baseline,
            revision=revision,
        )
        for claim in report.claims
    ]


def read_history(file: Path) -> list[Recorded]:
    """Return the records of a history, oldest first. An incomplete last line is left out.

    Raises:
        ValueError: the file is missing or no history, or a line before the last one is damaged.
    """
    from hnas.files import read_plain

    try:
        return _read(read_plain(file, _LARGEST), file)[0]
    except OSError as error:
        raise ValueError(f"history {file} cannot be read: {error.strerror or error}") from None


def append_history(file: Path, records: Sequence[Recorded]) -> None:
    """Add records to the end of a history, which is made if it is missing. Raises as ``read_history``."""
    from hnas.files import check_plain

    if file.exists():
        check_plain(file, _LARGEST)
    with os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        _, good = _read(stream.read(), file)
        stream.seek(good)
        stream.truncate()
        stream.write(b"".join(map(_line, records)))
        stream.flush()
        os.fsync(stream.fileno())


def _line(record: Recorded) -> bytes:
    from hnas.export.device.records import encode

    text = json.dumps(encode(record), allow_nan=False)
    return f'{_BEGIN}{crc32(text.encode()):08x}", "run": {text}}}\n'.encode()


def _read(content: bytes, file: Path) -> tuple[list[Recorded], int]:
    """Return the records, and the number of bytes that they have."""
    found: list[Recorded] = []
    good = 0
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        record = _record(line, f"{file}, line {number}")
        if record is None:
            if content[good + len(line) + 1 :].strip(b"\0"):
                raise ValueError(f"{file}, line {number} is not a run of hnas-bench, or is damaged; remove the line")
            break
        found.append(record)
        good += len(line) + 1
    begin = content[good:].partition(b"\0")[0]
    if begin[: len(_BEGIN)] != _BEGIN.encode()[: len(begin)]:
        raise ValueError(f"{file} ends in what is no run of hnas-bench; choose another file")
    return found, good


def _record(line: bytes, where: str) -> Recorded | None:
    """Return the record of a line, or None if it is damaged. Raise ValueError for one of another version."""
    from hnas.export.device.records import decode

    text = line[len(_BEGIN) + 8 + len('", "run": ') : -1]
    if line != f'{_BEGIN}{crc32(text):08x}", "run": '.encode() + text + b"}":
        return None
    return decode(Recorded, json.loads(text), where)


def series_of(records: Sequence[Recorded]) -> dict[tuple[str, str, str, str, str], list[Recorded]]:
    """Return the records by suite, claim, figure, processor and digest of the baseline, in the order of the file."""
    found: dict[tuple[str, str, str, str, str], list[Recorded]] = {}
    for run in records:
        found.setdefault((run.suite, run.claim, run.measure, run.processor, run.baseline), []).append(run)
    return found


def find_step(ratios: Sequence[float], seed: int = 0) -> _LevelStep | None:
    """Return the last step of a series of ratios, or None.

    1. Split the logarithms where the means of both sides differ most, weighted by the lengths of the sides.
    2. Compare that difference with those of random orders of the same values. It is a step if at most ``_ALARM`` of
       them have as large a difference. Each side has at least ``_SIDE`` runs, so about ten runs are needed.
    3. Search again after the step.

    ratios: above 0, oldest first. The newest ``_NEWEST`` are used.
    """
    import numpy as np

    skipped = max(0, len(ratios) - _NEWEST)
    logs, found, rng = np.log(np.array(ratios[skipped:], float)), None, np.random.default_rng(seed)
    start = 0
    while len(part := logs[start:]) >= 2 * _SIDE:
        orders = np.concatenate([part[None], rng.permuted(np.tile(part, (_ORDERS, 1)), axis=1)])
        n, left = len(part), np.arange(_SIDE, len(part) - _SIDE + 1)
        sums = np.cumsum(orders, axis=1)
        means = sums[:, left - 1] / left, (sums[:, -1:] - sums[:, left - 1]) / (n - left)  # case 1
        apart = np.abs(means[1] - means[0]) * np.sqrt(left * (n - left) / n)
        largest = apart.max(axis=1)
        if not largest[0] > 1e-9 or (largest >= largest[0] * (1 - 1e-9)).mean() > _ALARM:  # case 2
            break
        split = int(left[apart[0].argmax()])
        factor = math.exp(float(part[split:].mean() - part[:split].mean()))
        start += split
        found = _LevelStep(skipped + start, factor)  # case 3
    return found
