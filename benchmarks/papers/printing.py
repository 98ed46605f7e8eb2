"""Print a study for a person: tables, claim, rule, scale and verdicts."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from hnas.benchmarks.papers.claims import Claim, Plan
from hnas.benchmarks.papers.report import Report
from hnas.benchmarks.papers.statistics import FAILS, HOLDS, UNSEEN

FEWEST = 5  # seeds that a claim needs
COLOURS = {HOLDS: "green", FAILS: "red", UNSEEN: "yellow"}


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
