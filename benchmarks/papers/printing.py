"""Print a study for a person: ``print_study(console, claim, plan, report)``."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hnas.benchmarks.papers.claims import Claim, StudyPlan
from hnas.benchmarks.papers.report import StudyReport
from hnas.benchmarks.papers.statistics import FAILS, HOLDS, UNSEEN

FEWEST = 5  # seeds that a claim needs
_COLOURS = {HOLDS: "green", FAILS: "red", UNSEEN: "yellow"}


def print_study(console: Console, claim: Claim, plan: StudyPlan, report: StudyReport) -> None:
    """Print the tables, then claim, rule, scale, verdicts and notes."""
    for table in report.tables:
        shown = Table(*map(str, table.columns), title=escape(table.title), title_justify="left")
        for row in table.rows:
            shown.add_row(*(_cell(value) for value in row))
        console.print(shown)
    console.print(f"[bold]{claim.name}[/bold]  {escape(claim.title)}")
    console.print(f"claim: {escape(claim.says)}\nrule:  {escape(claim.rule)}\nscale: {escape(report.scale)}")
    for each in report.verdicts:
        colour = _COLOURS[each.answer]
        console.print(f"  [{colour}]{each.answer}[/{colour}]: {escape(each.question)}: {escape(each.line)}")
    for note in report.notes:
        console.print(f"  note: {escape(note)}")
    if plan.seeds < FEWEST and not plan.quick:
        console.print(f"  fewer than {FEWEST} seeds: too few for a claim")
    if plan.quick:
        console.print("  quick: this run tests only the program; its verdicts mean nothing")


def _cell(value: str | float) -> str:
    return escape(value) if isinstance(value, str) else f"{value:.4g}"
