"""What a study says: its verdicts with their intervals, the tables behind them, and the scale that they hold at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from benchmarks.papers.statistics import FAILS, HOLDS, UNSEEN, Interval, judge
from export.manifest import Machine

if TYPE_CHECKING:
    from benchmarks.papers.claims import Claim, Plan

FEWEST = 5  # seeds that a claim needs
COLOURS = {HOLDS: "green", FAILS: "red", UNSEEN: "yellow"}


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
    return Verdict(question, judge(interval, above), interval, unit)


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


def show(console: Console, claim: Claim, plan: Plan, report: Report) -> None:
    """Print the tables, then claim, rule, scale and verdicts."""
    for table in report.tables:
        shown = RichTable(*map(str, table.columns), title=escape(table.title), title_justify="left")
        for row in table.rows:
            shown.add_row(*(_cell(value) for value in row))
        console.print(shown)
    console.print(f"[bold]{claim.name}[/bold]  {escape(claim.title)}")
    console.print(f"claim: {escape(claim.says)}\nrule:  {escape(claim.rule)}\nscale: {escape(report.scale)}")
    for each in report.verdicts:
        colour = COLOURS[each.answer]
        console.print(f"  [{colour}]{each.answer}[/{colour}]: {escape(each.question)}: {escape(each.line)}")
    for note in report.notes:
        console.print(f"  note: {escape(note)}")
    if plan.seeds < FEWEST and not plan.quick:
        console.print(f"  fewer than {FEWEST} seeds: no claim should rest on this")
    if plan.quick:
        console.print("  quick: this run tests the machinery only; its verdicts mean nothing")


def _cell(value: str | float) -> str:
    return escape(value) if isinstance(value, str) else f"{value:.4g}"
