"""Print progress bars while a command works, and tables when it is done. No progress is printed on a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


def visible(text: str) -> str:
    """Return ``text`` with every control character escaped but the ends of lines and tabs.

    A terminal obeys control characters, and texts may come from files of others. Whatever a command prints passes here.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else " " if c.isspace() else ascii(c)[1:-1] for c in text)


def _console(*, stderr: bool = False) -> Console:
    """Return a console. Results go to standard output, progress goes to standard error."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 160
    # Markup is off: rich would remove the brackets of pip install 'hnas[search]'.
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=width)


def print_json(value: Any) -> None:
    """Print a result as JSON on standard output."""
    sys.stdout.write(json.dumps(value, indent=1) + "\n")  # JSON itself escapes control characters


@contextmanager
def _bars() -> Iterator[Progress | None]:
    """Yield progress bars on standard error, or None where standard error is no terminal."""
    screen = _console(stderr=True)
    if not screen.is_terminal:
        yield None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=screen, transient=True) as bars:
        yield bars


@contextmanager
def show_stages() -> Iterator[Callable[[str, int, int], None]]:
    """Yield ``on(stage, done, total)``, which moves the bar of a stage. A new stage completes the bars before it."""
    with _bars() as bars:
        known: dict[str, Any] = {}

        def on(stage: str, done: int, total: int) -> None:
            if bars is None:
                return
            if stage not in known:
                for task in bars.tasks:
                    bars.update(task.id, completed=task.total)
                known[stage] = bars.add_task(stage, total=total or None)
            bars.update(known[stage], completed=done)

        yield on


@contextmanager
def show_training(title: str) -> Iterator[tuple[Callable[[int, int, float], None], Callable[[str], None]]]:
    """Yield ``advance(step, steps, loss)``, which moves a bar, and ``say(line)``, which prints above the bar."""
    title = visible(title)
    with _bars() as bars:
        task = None if bars is None else bars.add_task(title, total=None)
        screen = _console(stderr=True) if bars is None else bars.console

        def advance(step: int, steps: int, loss: float) -> None:
            if bars is not None and task is not None:
                bars.update(task, completed=step, total=steps, description=f"{title}, loss {loss:.3f}")

        yield advance, lambda line: screen.print(visible(line))


def print_training(out: Path, record: Mapping[str, Any]) -> None:
    """Print the accuracy of a trained supernet and the next command."""
    tested = record["images"]["test"]
    lines = [f"{name} subnet: {share:.2%} top-1 on {tested} test images" for name, share in record["accuracy"].items()]
    lines.append(f"{record['steps']} steps in {record['seconds'] / 60:.1f} min -> {out}")
    if "derived" in record:
        types = [str(kind) for name, kind in record["derived"].items() if name.endswith(".op")]
        lines.append(f"most likely types: {', '.join(types)}")
        lines.append(f"next: hnas-train --alone derived --supernet {out} --recipe NAME --data DIR --out DIR")
    else:
        lines.append(f"next: hnas-deploy --target openvino-cpu --supernet {out} --data DIR")
    print_lines(lines)


def print_plan(lines: Sequence[tuple[str, str]]) -> None:
    """Print pairs of name and value."""
    screen = _console()
    for name, value in lines:
        screen.print(visible(f"{name:<11} {value}"), soft_wrap=True)


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", right: Sequence[str] = ()
) -> None:
    """Print a table. Columns named in ``right`` are aligned right, because they hold numbers."""
    from rich.table import Table

    made = Table(title=visible(title) or None, title_justify="left")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*map(visible, row))
    _console().print(made)


def print_lines(found: Sequence[str]) -> None:
    """Print sentences, one a line."""
    screen = _console()
    for line in found:
        screen.print(visible(line), soft_wrap=True)


def print_markdown(text: str) -> None:
    """Print Markdown: laid out on a terminal, unchanged on a pipe."""
    screen, text = _console(), visible(text)
    if not screen.is_terminal:
        sys.stdout.write(text)
        return
    from rich.markdown import Markdown

    screen.print(Markdown(text))


def print_deployment(found: Mapping[str, Any]) -> None:
    """Print the final table: the baseline, then every precision that was tried, with its verdict.

    A network without labelled images has no accuracy. The table then shows the signal-to-noise ratio of the worst
    slice of each artifact, and the grade.
    """
    judged = any(row["accuracy"] is not None for row in found["rows"])
    quality = ("top-1 fp32", "top-1 artifact") if judged else ("SQNR, grade",)
    figures = (*quality, "p50 ms [95 %]", "predicted ms", "speedup [95 %]", "size")
    rows = [
        (
            f"{row['subnet']}, {row['precision']}",
            *((f"{row['accuracy_fp32']:.2%}", f"{row['accuracy']:.2%}") if judged else (_quality(row),)),
            _interval(row.get("latency_ms")) or "not run on a device here",
            _interval(row["predicted_ms"]),
            _times(row),
            f"{row['size_bytes'] / 1e3:.0f} KB",
            row["verdict"],
        )
        for row in found["rows"]
    ]
    first = "subnet" if judged else "network"
    print_table((first, *figures, "verdict"), rows, f"{found['target']}: {found['name']}", figures)
    refused = [f"{each['precision']}: no artifact: {each['reason']}" for each in found["refused"]]
    print_lines([*refused, *found["notes"], found["footnote"], f"bundle: {found['bundle']}"])


def _quality(row: Mapping[str, Any]) -> str:
    return f"{row['sqnr_db']:.0f} dB, {row['grade']}"


def _interval(value: Mapping[str, float] | None) -> str:
    return f"{value['value']:.3g} [{value['low']:.3g}, {value['high']:.3g}]" if value else ""


def _times(row: Mapping[str, Any]) -> str:
    found = row.get("speedup")
    if not found:
        return "1"
    mark = "" if found["kind"] == "measured" else " predicted"
    return f"{found['value']:.2f}x [{found['low']:.2f}, {found['high']:.2f}]{mark}"
