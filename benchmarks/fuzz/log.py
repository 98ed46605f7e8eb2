"""Keep the finished cases of a run in a file that stays readable after a kill: ``FuzzLog(out, seed, backends)``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CASES, _FINDS = "cases.jsonl", "finds"


@dataclass(frozen=True)
class FinishedCase:
    """A case and its outcome.

    setting: the backend, precision and passes as text.
    outcome: the outcome of the trial verdict, or "lost" if the process died in this case.
    sqnr_db: signal-to-noise ratio of the outputs in dB, or None.
    saved: the folder of the reduced find, or None.
    """

    case: int
    network: str
    setting: str
    batch: int
    outcome: str
    line: str
    sqnr_db: float | None = None
    seconds: float = 0.0
    saved: str | None = None

    @property
    def found(self) -> bool:
        """Return whether the case shows a fault."""
        return self.outcome in ("mismatch", "broken", "lost")


class FuzzLog:
    """The finished cases of a seed, by their numbers; kept in memory alone where ``out`` is None."""

    def __init__(self, out: Path | None, seed: int, backends: Sequence[str]) -> None:
        self.done: dict[int, FinishedCase] = {}
        self.folder = None if out is None else out / _FINDS
        self._file = None if out is None else out / CASES
        self._head = {"seed": seed, "backends": list(backends)}
        if self._file is not None:
            self._read(self._file)

    @property
    def finds(self) -> list[FinishedCase]:
        """Return the cases that show a fault."""
        return [done for done in self.done.values() if done.found]

    def alike(self, setting: str, line: str) -> int:
        """Return the number of finds with the same setting and the same text, without numbers."""
        kind = _words(line)
        return sum(done.setting == setting and kind in _words(done.line) for done in self.finds)

    def begin(self, case: int) -> None:
        """Record that a case starts. If the process dies twice in this case, a later run reports it as lost."""
        self._append({"begun": case})

    def add(self, done: FinishedCase) -> None:
        """Record a finished case."""
        self.done[done.case] = done
        self._append(asdict(done))

    def _append(self, record: dict[str, Any]) -> None:
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")

    def _read(self, file: Path) -> None:
        from hnas.files import write_text

        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            self._append(self._head)
            return
        text = file.read_text("utf-8")
        if not text.endswith("\n"):  # a kill cut the last line off
            text = text[: text.rfind("\n") + 1]
            write_text(file, text)
        records = [json.loads(line) for line in text.splitlines()]
        if not records or records[0] != self._head:
            raise ValueError(f"{file} belongs to another seed or other backends; choose another --out")
        begun = Counter(record["begun"] for record in records[1:] if "begun" in record)
        self.done = {record["case"]: FinishedCase(**record) for record in records[1:] if "case" in record}
        for case, times in begun.items():
            if times > 1 and case not in self.done:  # if it died once, a user may have killed it
                self.add(FinishedCase(case, "", "", 1, "lost", "the process that compiled it died twice"))


def _words(line: str) -> str:
    return "".join(letter for letter in line.partition(" (")[0] if letter.isalpha())


def summarise(done: Sequence[FinishedCase], seed: int, fresh: int, spent: float) -> dict[str, Any]:
    """Return the counts by outcome, the refusals by their text, and the finds, as plain values.

    fresh: number of cases that this run has added.
    spent: seconds that this run took.
    """
    refused = Counter(each.line for each in done if each.outcome == "refused")
    by = Counter(" ".join(each.setting.split(",")[0].split()) for each in done)
    lowest = {
        setting: min(levels)
        for setting in by
        if (levels := [d.sqnr_db for d in done if d.sqnr_db is not None and d.setting.startswith(setting)])
    }
    return {
        "seed": seed,
        "cases": len(done),
        "outcomes": dict(Counter(each.outcome for each in done)),
        "settings": dict(by),
        "lowest_sqnr_db": lowest,
        "refused": dict(refused.most_common()),
        "finds": [asdict(each) for each in done if each.found],
        "seconds": round(spent, 1),
        "cases_per_second": round(fresh / spent, 2) if spent else None,
    }
