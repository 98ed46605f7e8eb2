"""Write the report of ``hnas-bench check``, ``compare`` and ``run``, and that of a history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hnas.pages.bars import histogram
from hnas.pages.scatter import COLOURS, Mark, scatter
from hnas.pages.shell import SCRIPT, page, table, text

_MOST_MARKS = 600
_Round = Sequence[tuple[float, float]]
_Rows = Sequence[tuple[str, str]]


def bench_page(title: str, rows: Sequence[tuple[str, str]], rounds: Sequence[_Round], record: str) -> str:
    """Return the page.

    rows: (name, line) of the claim, the measurements and the verdict, as the command prints them.
    rounds: for each process, (seconds of the first, seconds of the second) of each block; empty: nothing was measured.
    record: the record of the command, as JSON.
    """
    parts = [_table(rows)]
    if any(rounds):
        parts += ["<h2>Every block</h2>", _blocks(rounds)]
        pairs = [pair for each in rounds for pair in each]
        times = {side: [1000 * pair[at] for pair in pairs] for at, side in enumerate(("first", "second"))}
        named = '<span class="one">the first</span> and <span class="two">the second</span>'
        parts += ["<h2>Times</h2>", f"<p>Medians of blocks of {named}.</p>", histogram(times, "ms", "times of both")]
    return page(title, "\n".join([*parts, _record(record)]), SCRIPT)


def suite_page(rows: _Rows, claims: Sequence[tuple[str, _Rows, Sequence[_Round]]], record: str) -> str:
    """Return the page of a suite.

    rows: those of the whole suite, as the command prints them.
    claims: of each claim the title, its rows, and its rounds as in ``bench_page``.
    record: the record of the command, as JSON.
    """
    parts = [_table(rows)]
    for number, (title, own, rounds) in enumerate(claims):
        chart = [_blocks(rounds, f"claim {number}, ")] if any(rounds) else []
        parts += [f"<h2>{text(title)}</h2>", _table(own), *chart]
    return page("hnas-bench run", "\n".join([*parts, _record(record)]), SCRIPT)


@dataclass(frozen=True)
class HistoryChart:
    """One series of a history.

    rows: (name, line) of its newest runs and of its step.
    points: of each timed run a line of text, the ratio, the ends of its interval, and the outcome; oldest first.
    """

    title: str
    rows: Sequence[tuple[str, str]]
    points: Sequence[tuple[str, float, float, float, str]]


def history_page(charts: Sequence[HistoryChart]) -> str:
    """Return the page of a history: a chart of the ratios of each series, with its rows."""
    parts = []
    for number, chart in enumerate(charts):
        parts.append(f"<h2>{text(chart.title)}</h2>")
        shown = list(enumerate(chart.points, 1))[-_MOST_MARKS:]
        outcomes = sorted({outcome for _, (*_, outcome) in shown})
        marks = [
            Mark((at, at, at), (ratio, low, high), f"run-{number}-{at}", said, kind=outcomes.index(outcome))
            for at, (said, ratio, low, high, outcome) in shown
        ]
        if marks:
            colours = ", ".join(f'<span class="{COLOURS[at]}">{text(each)}</span>' for at, each in enumerate(outcomes))
            told = f"Bars are intervals. Runs: {colours}."
            drawn = scatter(marks, ("run", "times better than the baseline"), title="runs")
            parts.append(f'<figure>{drawn}<figcaption class="soft">{told}</figcaption></figure>')
        parts.append(_table(chart.rows))
    return page("hnas-bench history", "\n".join(parts), SCRIPT)


def _table(rows: _Rows) -> str:
    return table(("what", "result"), [(text(name), text(line)) for name, line in rows])


def _record(record: str) -> str:
    return f"<h2>Record</h2><details><summary>as JSON</summary><pre>{text(record)}</pre></details>"


def _blocks(rounds: Sequence[_Round], chart: str = "") -> str:
    """Return how many times faster the second was in each block, by process. Of many blocks, some are shown.

    chart: begins the names of points and groups, so that the boxes of one chart do not act on another.
    """
    numbered = [
        (process, at, first / second) for process, each in enumerate(rounds) for at, (first, second) in enumerate(each)
    ]
    step = -(-len(numbered) // _MOST_MARKS)
    marks = [
        Mark(
            (at + 1, at + 1, at + 1),
            (ratio, ratio, ratio),
            f"{chart}block-{process}-{at}",
            f"process {process + 1}, block {at + 1}: {ratio:.3f}x",
            kind=process % len(COLOURS),
            group=f"{chart}process {process + 1}",
        )
        for process, at, ratio in numbered[::step]
    ]
    boxes = "".join(
        f'<label class="{COLOURS[process % len(COLOURS)]}"><input type="checkbox" checked '
        f'data-filter="{chart}process {process + 1}"> process {process + 1}</label>'
        for process in range(len(rounds))
    )
    axes = ("block", "times that the second is faster")
    told = "Processes are fresh. A difference between them is not seen within one." + (
        f" Every {step}th block is shown." if step > 1 else ""
    )
    shown = f"<fieldset><legend>Show</legend>{boxes}</fieldset>"
    drawn = scatter(marks, axes, title="blocks")
    return f'{shown}<figure>{drawn}<figcaption class="soft">{told}</figcaption></figure>'
