"""What a study says: its verdicts with their intervals, the tables behind them, and the scale that they hold at."""

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
class Verdict:
    """The answer to one question; ``interval`` is the difference that it rests on, ``unit`` what it is in."""

    question: str
    answer: str
    interval: Interval
    unit: str = "points"

    @property
    def line(self) -> str:
        """For a person."""
        scale = 100.0 if self.unit == "points" else 1.0
        return f"{self.interval.line(scale)} {self.unit} (95 % interval, n={self.interval.n})"

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        fields = {"question": self.question, "answer": self.answer, "unit": self.unit}
        return {**fields, "interval": self.interval.to_json()}


def verdict(question: str, interval: Interval, unit: str = "points", above: float = 0.0) -> Verdict:
    """The verdict on "the difference is more than ``above``"."""
    return Verdict(question, judge_interval(interval, above), interval, unit)


@dataclass(frozen=True)
class Table:
    """Figures that a verdict rests on, or a control."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]  # text and numbers


@dataclass(frozen=True)
class Report:
    """scale: data, space, budget and seeds in one line, without which a verdict means nothing."""

    scale: str
    verdicts: Sequence[Verdict]
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """The whole report and the machine that it was made on."""
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


def markdown(records: Mapping[str, Mapping[str, Any]]) -> str:
    """The verdicts of records, which have the names of their files, as the table of docs/evidence.md."""
    lines = ["| | question | answer | figure (95 % interval over seeds) |", "|---|---|---|---|"]
    for name, record in records.items():
        for each in record["verdicts"]:
            value, low, high, n = (each["interval"][key] for key in ("value", "low", "high", "n"))
            ends = (-math.inf if low is None else low, math.inf if high is None else high)
            figure = Verdict(each["question"], each["answer"], Interval(value, *ends, n), each["unit"]).line
            lines.append(f"| {name} | {each['question']} | {each['answer']} | {figure.partition(' (')[0]} |")
    return "\n".join(lines) + "\n"


def results() -> dict[str, dict[str, Any]]:
    """The committed records of full runs, by the names of their files."""
    files = sorted((Path(__file__).parent / "results").glob("*.json"))
    return {file.stem: json.loads(file.read_text()) for file in files}


if __name__ == "__main__":  # the table of what is committed
    print(markdown(results()), end="")  # noqa: T201 - the output
