"""The commands ``run``, ``history`` and ``report`` of ``hnas-bench``: ``add_commands(commands, codes, numbers)``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnas.benchmarks.printing import print_rows, show_progress
from hnas.report import print_lines

if TYPE_CHECKING:
    from hnas.benchmarks.gate.history import Recorded
    from hnas.benchmarks.gate.suite import Suite
    from hnas.benchmarks.gate.suite_records import SuiteReport

_FILES = ("junit", "markdown", "report", "history")


def add_commands(commands: Any, codes: str, seconds: Callable[[str], float], count: Callable[[str], int]) -> None:
    """Add ``run``, ``history`` and ``report`` to the sub-commands of ``hnas-bench``.

    codes: a line on the exit codes.
    seconds, count: the types of a duration and of a number of 1 or more.
    """
    run = commands.add_parser("run", help="check a suite of claims about bundles and model files", epilog=codes)
    run.add_argument("suite", type=Path, metavar="SUITE.toml", help="file of claims; docs/ci.md describes it")
    run.add_argument("--max-time", type=seconds, metavar="5min", help="time limit of the run (default: the suite's)")
    run.add_argument("--processes", type=count, metavar="N", help="fresh processes in a look (default: the suite's)")
    run.add_argument("--seed", type=int, metavar="N", help="seed of inputs, order and bootstrap (default: the suite's)")
    run.add_argument(
        "--baseline",
        metavar="FILE.jsonl|REF",
        help="a history, or a branch, tag or commit whose last run is in --history; reach it, less a tolerance",
    )
    run.add_argument("--history", type=Path, metavar="FILE.jsonl", help="add this run to this file")
    run.add_argument("--markdown", type=Path, metavar="FILE.md", help="write a summary for a pull request")
    run.add_argument("--junit", type=Path, metavar="FILE", help="write a JUnit file for CI, with errors too")
    run.add_argument("--report", type=Path, metavar="FILE.html", help="also write verdicts and blocks as a page")
    run.add_argument("--json", action="store_true", help="print the whole record as JSON and nothing else")
    run.add_config()
    run.set_defaults(run=_run_suite)

    past = commands.add_parser("history", help="print the runs of each claim, and steps in them")
    past.add_argument("file", type=Path, metavar="FILE.jsonl", help="file that run --history wrote")
    past.add_argument("--json", action="store_true", help="print runs and steps as JSON and nothing else")
    past.set_defaults(run=_run_history)

    drawn = commands.add_parser("report", help="draw a history, or the record of a run, as a page")
    drawn.add_argument("file", type=Path, metavar="FILE", help="what run --history or run --json wrote")
    drawn.add_argument("--out", type=Path, required=True, metavar="FILE.html", help="the page")
    drawn.set_defaults(run=_run_report)


def _run_suite(arguments: argparse.Namespace) -> int:
    """Run ``hnas-bench run``."""
    from hnas.benchmarks.gate import history, records, summary
    from hnas.benchmarks.gate.revisions import revision_here
    from hnas.benchmarks.gate.suite_run import run_suite
    from hnas.files import write_text

    suite = _suite_of(arguments)
    for name in _FILES:  # fail before the measurement, not after it
        if getattr(arguments, name):
            records.require_writable(getattr(arguments, name))
    if arguments.history and arguments.history.exists():
        history.read_history(arguments.history)
    recorded = _recorded(arguments)
    with show_progress() as show:
        report = run_suite(arguments.suite, suite, show, recorded)
    if arguments.json:  # before any file, so that a failed write does not lose the measurement
        print_lines([records.to_text(report.to_json())])
    else:
        print_rows(summary.rows_of(report))
    if arguments.junit:
        write_text(arguments.junit, summary.junit_of(report))
    if arguments.markdown:
        write_text(arguments.markdown, summary.markdown(report))
    if arguments.report:
        write_text(arguments.report, _page_of(report))
    if arguments.history:
        if not (revision := revision_here(arguments.suite.parent)):
            why = "git has none here, or a file that it tracks is changed"
            sys.stderr.write(f"the history names no commit for this run ({why}); --baseline REF does not find it\n")
        history.append_history(arguments.history, history.records_of(report, revision))
    return report.verdict.exit_code


def _recorded(arguments: argparse.Namespace) -> list[Recorded] | None:
    """Return the earlier runs that ``--baseline`` names; None without it.

    1. A file: all its runs.
    2. A commit, branch or tag: the runs in ``--history`` of that commit and of those before it.
    """
    from hnas.benchmarks.gate.history import read_history
    from hnas.benchmarks.gate.revisions import runs_until

    named = arguments.baseline
    if named is None:
        return None
    if Path(named).is_file() or named.endswith(".jsonl"):  # case 1
        return read_history(Path(named))
    if arguments.history is None or not arguments.history.exists():  # case 2
        raise ValueError(f"--baseline is {named!r}, which is no file; a commit needs --history FILE with its runs")
    return runs_until(named, read_history(arguments.history), arguments.suite.parent)


def _suite_of(arguments: argparse.Namespace) -> Suite:
    """Return the suite, with the options that the command line gives."""
    from hnas.benchmarks.gate.suite import read_suite

    suite = read_suite(arguments.suite)
    given = {"processes": arguments.processes, "seed": arguments.seed}
    if arguments.max_time is not None:
        given["time"] = f"{arguments.max_time}s"
    return replace(suite, **{name: value for name, value in given.items() if value is not None})


def _page_of(report: SuiteReport) -> str:
    from hnas.benchmarks.gate import records, summary
    from hnas.pages.bench import suite_page

    claims = [
        (claim.name, summary.rows_of_claim(claim), claim.speed.rounds if claim.speed else ()) for claim in report.claims
    ]
    return suite_page(summary.rows_of_suite(report), claims, records.to_text(report.to_json()))


def _run_history(arguments: argparse.Namespace) -> int:
    """Run ``hnas-bench history``; it judges nothing and returns 0."""
    from hnas.benchmarks.gate import records, summary
    from hnas.benchmarks.gate.history import read_history

    found = read_history(arguments.file)
    if not found:
        raise ValueError(f"history {arguments.file} has no runs")
    if arguments.json:
        print_lines([records.to_text(summary.json_of_history(found))])
    else:
        print_rows(summary.rows_of_history(found))
    return 0


def _run_report(arguments: argparse.Namespace) -> int:
    """Run ``hnas-bench report``; it judges nothing and returns 0."""
    from hnas.benchmarks.gate import records, summary
    from hnas.benchmarks.gate.history import read_history
    from hnas.files import write_text
    from hnas.pages.bench import history_page

    records.require_writable(arguments.out)
    if arguments.file.suffix == ".jsonl":
        found = read_history(arguments.file)
        if not found:
            raise ValueError(f"history {arguments.file} has no runs")
        page = history_page(summary.charts_of_history(found))
    else:
        page = _page_of(_read_record(arguments.file))
    write_text(arguments.out, page)
    return 0


def _read_record(file: Path) -> SuiteReport:
    """Return the report whose JSON is in ``file``.

    Raises:
        ValueError: the file is missing, no JSON, or no record of ``hnas-bench run``.
    """
    from hnas.benchmarks.gate.suite_records import SuiteReport
    from hnas.files import read_json

    record = read_json(file)
    if "claims" not in record:
        raise ValueError(f"{file} is no record of hnas-bench run; check and compare write their page with --report")
    return SuiteReport.from_json(record, str(file))
