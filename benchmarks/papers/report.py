"""Define the report of a study: verdicts with intervals, tables of the numbers, and the scale of the study.

``python -m hnas.benchmarks.papers.report`` prints the table of docs/evidence.md from the committed records.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hnas.benchmarks.papers.statistics import Interval, judge_interval
from hnas.export.device.machine import Machine


@dataclass(frozen=True)
class ClaimVerdict:
    """The answer to one question, the difference that decides it, and the unit of the difference."""

    question: str
    answer: str
    interval: Interval
    unit: str = "points"

    @property
    def line(self) -> str:
        """Return the difference and its interval as one line of text."""
        scale = 100.0 if self.unit == "points" else 1.0
        return f"{self.interval.line(scale)} {self.unit} (95 % interval, n={self.interval.n})"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        fields = {"question": self.question, "answer": self.answer, "unit": self.unit}
        return {**fields, "interval": self.interval.to_json()}


def judge_difference(question: str, interval: Interval, unit: str = "points", above: float = 0.0) -> ClaimVerdict:
    """Return the verdict on "the difference is more than ``above``"."""
    return ClaimVerdict(question, judge_interval(interval, above), interval, unit)


@dataclass(frozen=True)
class StudyTable:
    """A table of the figures behind a verdict, or of controls; cells are texts and numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class StudyReport:
    """The verdicts of a study. They hold only for the data, space, budget and seeds that ``scale`` states."""

    scale: str
    verdicts: Sequence[ClaimVerdict]
    tables: Sequence[StudyTable] = ()
    notes: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the report and the machine that it was made on as plain JSON values."""
        tables = [
            {"title": t.title, "columns": list(t.columns), "rows": [list(row) for row in t.rows]} for t in self.tables
        ]
        return {
            "scale": self.scale,
            "verdicts": [each.to_json() for each in self.verdicts],
            "tables": tables,
            "notes": list(self.notes),
            "machine": Machine.here().cpu,
        }


def verdict_table(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the verdicts of records, keyed by the names of their files, as the table of docs/evidence.md."""
    lines = ["| | question | answer | figure (95 % interval over seeds) |", "|---|---|---|---|"]
    for name, record in records.items():
        for each in record["verdicts"]:
            value, low, high, n = (each["interval"][key] for key in ("value", "low", "high", "n"))
            ends = (-math.inf if low is None else low, math.inf if high is None else high)
            figure = ClaimVerdict(each["question"], each["answer"], Interval(value, *ends, n), each["unit"]).line
            lines.append(f"| {name} | {each['question']} | {each['answer']} | {figure.partition(' (')[0]} |")
    return "\n".join(lines) + "\n"


def committed_records() -> dict[str, dict[str, Any]]:
    """Return the committed records of full runs, keyed by the names of their files."""
    files = sorted((Path(__file__).parent / "results").glob("*.json"))
    return {file.stem: json.loads(file.read_text()) for file in files}


if __name__ == "__main__":
    print(verdict_table(committed_records()), end="")  # noqa: T201 - the output
