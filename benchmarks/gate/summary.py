"""Write the report on a suite as rows, Markdown and JUnit, and a history as rows: ``rows_of(report)``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from hnas.benchmarks.gate.history import Recorded, find_step, series_of
from hnas.benchmarks.gate.records import junit_suite
from hnas.pages.bench import HistoryChart

if TYPE_CHECKING:
    from hnas.benchmarks.gate.suite_records import ClaimReport, SuiteReport

_SHOWN = 10  # runs of a claim
_ABOUT = "1 % of series without a step are said to have one, and fewer than ten runs show none"
_OBEYED = {ord(c): f"&#{ord(c)};" for c in "\\`*_[]|~#@<>&"}


def rows_of(report: SuiteReport) -> list[tuple[str, str]]:
    """Return the report as rows: the calibration, each claim with its parts, and the verdict last."""
    *head, verdict = rows_of_suite(report)
    return [*head, *(row for claim in report.claims for row in rows_of_claim(claim)), verdict]


def rows_of_suite(report: SuiteReport) -> list[tuple[str, str]]:
    """Return the rows of the whole suite, without its claims; the verdict is the last."""
    rows = [("suite", f"{report.suite}, {len(report.claims)} claims"), ("calibration", report.calibration_line())]
    if report.load:
        rows.append(("load", report.load.line()))
    verdict = report.verdict
    return [*rows, ("verdict", f"{verdict.outcome} (exit code {verdict.exit_code}, {report.seconds:.0f} s)")]


def rows_of_claim(claim: ClaimReport) -> list[tuple[str, str]]:
    """Return one claim as rows."""
    rows = [(claim.name, f"{claim.outcome}: {_told(claim)}")]
    if claim.noise is not None:
        rows.append(("  noise", f"baseline against itself {claim.noise.line()}"))
    rows += [(f"  ends of the {side}", parts.line()) for side, parts in claim.ends.items()]
    return rows + [(f"  {part.name}", f"{part.outcome}: {part.line}") for part in claim.parts]


def _told(claim: ClaimReport) -> str:
    """Return the word and the factor of a claim, with the looks that it took."""
    if claim.speed is None:
        return f"{len(claim.parts)} bounds, none of them timed"
    looks = f"{claim.looks} look{'' if claim.looks == 1 else 's'}"
    wide = claim.width is not None and claim.speed.width > claim.width
    width = f"; the interval is {claim.speed.width:.1f} % wide, {claim.width:g} % was asked" if wide else ""
    return f"{claim.word}, {claim.measure} {claim.speed.line()}, {looks}{width}"


def markdown(report: SuiteReport) -> str:
    """Return the report as Markdown for a pull request."""
    verdict = report.verdict
    lines = [
        f"### hnas-bench: {verdict.outcome}",
        "",
        "| claim | verdict | measured | bounds |",
        "|---|---|---|---|",
    ]
    for claim in report.claims:
        bounds = "<br>".join(_plain(f"{part.name} {part.outcome}: {part.line}") for part in claim.parts)
        lines.append(f"| {_plain(claim.name)} | **{claim.outcome}** | {_plain(_told(claim))} | {bounds} |")
    lines += ["", f"Calibration: {_plain(report.calibration_line())}.", "", f"Processor: {_plain(report.processor)}."]
    if report.load:
        lines += ["", f"Load: {report.load.line()}."]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Return text that neither Markdown nor HTML obeys, for one cell of a table."""
    return "".join(c if c.isprintable() else " " for c in text).translate(_OBEYED)


def junit_of(report: SuiteReport) -> str:
    """Return the JUnit document: one case for each part of each claim."""
    return junit_suite("hnas-bench run", [(claim.name, claim.parts) for claim in report.claims], report.seconds)


def rows_of_history(records: Sequence[Recorded]) -> list[tuple[str, str]]:
    """Return the newest runs of each claim as rows, and the step of its series if there is one."""
    rows: list[tuple[str, str]] = []
    for (suite, claim, measure, processor, baseline), runs in series_of(records).items():
        against = f" against {baseline[:12]}" if baseline else ""
        what = f"{measure or 'bounds without a clock'}{against} on {processor}"
        rows.append((claim, f"{_runs(runs)} of {what}, {suite}"))
        rows += [(f"  {run.time}", _run_line(run)) for run in runs[-_SHOWN:]]
        since, factor = _step_of(runs)
        if since is None:
            rows.append(("  step", f"none seen in {_runs(runs)}; {_ABOUT}"))
        else:
            change = f"{abs(factor - 1):.1%} {'better' if factor > 1 else 'worse'}"
            at = f"{since.time}{f' ({since.revision[:12]})' if since.revision else ''}"
            rows.append(("  step", f"{change} since {at}; {_ABOUT}"))
    return rows


def charts_of_history(records: Sequence[Recorded]) -> list[HistoryChart]:
    """Return a chart for each series: a point for each timed run, and the rows that ``history`` prints."""
    charts = []
    for runs in series_of(records).values():
        (title, told), *rows = rows_of_history(runs)
        points = [
            (f"{run.time}: {_run_line(run)}", run.ratio, run.low, run.high, run.outcome)
            for run in runs
            if run.ratio is not None and run.low is not None and run.high is not None
        ]
        charts.append(HistoryChart(title, [("runs", told), *rows], points))
    return charts


def json_of_history(records: Sequence[Recorded]) -> dict[str, object]:
    """Return every run of each claim, and the step of its series, as plain JSON values."""
    series = []
    for key, runs in series_of(records).items():
        since, factor = _step_of(runs)
        step = None if since is None else {"since": since.time, "revision": since.revision, "factor": factor}
        named = dict(zip(("suite", "claim", "measure", "processor", "baseline"), key, strict=True))
        series.append({**named, "step": step, "runs": [asdict(run) for run in runs]})
    return {"schema": 1, "series": series}


def _step_of(runs: Sequence[Recorded]) -> tuple[Recorded | None, float]:
    """Return the run at which the last step of a series begins, or None, and the factor of the step."""
    timed = [(run, run.ratio) for run in runs if run.ratio is not None]
    step = find_step([ratio for _, ratio in timed])
    return (None, 1.0) if step is None else (timed[step.at][0], step.factor)


def _runs(runs: Sequence[Recorded]) -> str:
    return f"{len(runs)} run{'' if len(runs) == 1 else 's'}"


def _run_line(run: Recorded) -> str:
    """Return a run as one line."""
    figures = "" if run.ratio is None else f": {run.word} {run.ratio:.3f}x [{run.low:.3f}, {run.high:.3f}]"
    return f"{run.outcome}{figures}{f', {run.revision[:12]}' if run.revision else ''}"
