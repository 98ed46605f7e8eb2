"""What a person reads: progress while work goes on, tables when it is done. Silent on a pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

Advance = Callable[[int, str], None]


def console(*, stderr: bool = True) -> Console:
    """The terminal; standard error by default, so that standard output stays data."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=True)


@contextmanager
def progress(title: str, total: int) -> Iterator[Advance]:
    """A progress bar on standard error: ``advance(done, note)``; nothing at all when that is no terminal."""
    screen = console()
    if not screen.is_terminal:
        yield lambda done, note="": None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=screen, transient=True) as bar:
        task = bar.add_task(title, total=total, note="")
        yield lambda done, note="": bar.update(task, completed=done, note=note)
