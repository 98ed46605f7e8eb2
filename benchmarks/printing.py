"""Print rows and progress of the commands of the benchmarks: ``print_rows([("verdict", "holds")])``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hnas.benchmarks.gate.session import Progress


@contextmanager
def show_progress() -> Iterator[Progress]:
    """Show a progress bar on stderr while the work runs; show nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda doing, fraction: None  # noqa: ARG005 - the shape of a progress callback
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    from hnas.report import visible

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=1.0)
        yield lambda doing, fraction: bar.update(task, description=visible(doing), completed=fraction)


def print_rows(rows: Sequence[tuple[str, str]]) -> None:
    """Print two columns, with verdicts in colour where stdout is a terminal; lines are never wrapped in a log."""
    from rich.console import Console
    from rich.text import Text

    from hnas.report import visible

    console = Console(highlight=False, soft_wrap=True)
    width = max(len(name) for name, _ in rows)
    colours = {"holds": "green", "fails": "red", "inconclusive": "yellow"}
    for name, line in rows:
        colour = colours.get(line.split(" ", 1)[0].rstrip(":"), "")
        console.print(Text(f"{visible(name):<{width}}  ", "bold"), Text(visible(line), colour), sep="")
