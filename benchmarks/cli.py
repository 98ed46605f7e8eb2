"""Run the command ``hnas-bench``: print lines for people or JSON for machines, and return an exit code for CI.

Heavy modules are imported when a subcommand runs, so ``--help`` is quick.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hnas.benchmarks.loadgen import add_loadgen
from hnas.benchmarks.printing import print_rows, show_progress
from hnas.benchmarks.suites import add_commands
from hnas.report import print_lines

if TYPE_CHECKING:
    from hnas.benchmarks.gate.check import CheckOptions
    from hnas.benchmarks.gate.contrast import Contrast
    from hnas.benchmarks.gate.records import GateReport, Ratio
    from hnas.cli.arguments import Parser

_CODES = (
    "exit codes: 0 holds, 1 fails, 2 usage or a broken bundle, 3 runtime missing, 4 inconclusive, 70 internal error"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code. An error is one line on stderr, and one case in the JUnit file."""
    arguments = parser().parse_args(argv)
    from hnas.cli.ending import guarded

    def failed(line: str, code: int) -> None:
        junit = getattr(arguments, "junit", None)
        if junit is not None:
            from hnas.benchmarks.gate import records
            from hnas.files import write_text

            with suppress(ValueError, OSError):  # the line on stderr and the exit code already report the error
                records.require_writable(junit)
                write_text(junit, records.junit_error(_subject(arguments).name, line, code))

    return guarded("hnas-bench", lambda: int(arguments.run(arguments)), failed=failed)


def _subject(arguments: argparse.Namespace) -> Path:
    """Return what a command with a JUnit file checks: a bundle, or a suite."""
    return Path(getattr(arguments, "bundle", None) or arguments.suite)


def parser() -> Parser:
    """Return the argument parser."""
    from hnas.cli.arguments import Parser
    from hnas.cli.completion import script_of

    top = Parser("hnas-bench", description="Do the claimed speedups still hold?", epilog=_CODES)
    top.add_completion(lambda shell: script_of(parser(), shell))
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    check = commands.add_parser("check", help="check the claim of a bundle on this machine", epilog=_CODES)
    check.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder that hnas-deploy wrote")
    check.add_argument(
        "--min-speedup",
        type=_positive,
        metavar="X",
        help="speedup to reach (default: 0.9 of the low end of the claim)",
    )
    check.add_argument(
        "--here", action="store_true", help="judge by this machine, even if the claim is for another CPU model"
    )
    check.add_argument(
        "--host",
        metavar="URL",
        help="run on this device: ssh://[user@]device[:port][/path/of/python] or adb://[serial]",
    )
    check.add_argument("--data", type=Path, metavar="DIR", help="folder of images that hnas does not ship")
    check.add_argument("--junit", type=Path, metavar="FILE", help="write a JUnit file for CI, with errors too")
    check.set_defaults(run=_run_check)
    _add_measuring_options(check)

    compare = commands.add_parser("compare", help="time two artifacts interleaved, and compare their outputs")
    compare.add_argument("a", type=Path, metavar="A", help="bundle, artifact folder, or .onnx, .xml, .tflite file")
    compare.add_argument("b", type=Path, metavar="B", help="as A; the printed ratio says how many times faster B is")
    compare.add_argument(
        "--input-shape",
        type=shape,
        action="append",
        default=[],
        metavar="1x3x224x224",
        help="shape of a float32 input; repeat for each input (default: the shapes that the artifacts state)",
    )
    compare.set_defaults(run=_run_compare, min_speedup=None, here=False, data=None, host=None)
    _add_measuring_options(compare)

    add_commands(commands, _CODES, seconds, count)
    add_loadgen(commands, seconds, _positive)
    return top


def _add_measuring_options(command: Parser) -> None:
    """Add the options of every subcommand that measures."""
    command.add_argument(
        "--max-time", type=seconds, default=60.0, metavar="60s", help="time limit of the command (default %(metavar)s)"
    )
    command.add_argument(
        "--processes", type=count, default=5, metavar="N", help="fresh processes of each artifact (default 5)"
    )
    command.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of inputs, order and bootstrap (default 0)"
    )
    command.add_argument("--json", action="store_true", help="print the whole record as JSON and nothing else")
    command.add_argument("--report", type=Path, metavar="FILE.html", help="also write verdict and blocks as a page")
    command.add_config()


def seconds(text: str) -> float:
    """Return the seconds of a duration such as 60s, 500ms, 2m, 1h, or of a plain number.

    Raises:
        argparse.ArgumentTypeError: ``text`` is not a duration above 0.
    """
    from hnas.benchmarks.gate.checking import parse_seconds

    try:
        return parse_seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _positive(text: str) -> float:
    """Return a finite number above 0."""
    from hnas.benchmarks.gate.checking import positive_number

    try:
        return positive_number(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def count(text: str) -> int:
    """Return an integer of 1 or more.

    Raises:
        argparse.ArgumentTypeError: ``text`` is something else.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def shape(text: str) -> tuple[int, ...]:
    """Return a shape from sizes joined by x, such as 1x3x224x224.

    Raises:
        argparse.ArgumentTypeError: ``text`` is not a shape.
    """
    try:
        return tuple(count(size) for size in text.split("x"))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape such as 1x3x224x224") from None


def _options(arguments: argparse.Namespace) -> CheckOptions:
    """Return the options record of the parsed arguments."""
    from hnas.benchmarks.gate.check import CheckOptions

    return CheckOptions(
        min_speedup=arguments.min_speedup,
        max_time=arguments.max_time,
        processes=arguments.processes,
        here=arguments.here,
        data=arguments.data,
        seed=arguments.seed,
        host=arguments.host,
    )


def _run_check(arguments: argparse.Namespace) -> int:
    """Run ``hnas-bench check``."""
    from hnas.benchmarks.gate import records
    from hnas.benchmarks.gate.check import check_claim
    from hnas.files import write_text

    for file in filter(None, (arguments.junit, arguments.report)):
        records.require_writable(file)  # fail before the measurement, not after it
    with show_progress() as show:
        report = check_claim(arguments.bundle, _options(arguments), show)
    if arguments.junit:
        name = report.evidence.claim.name
        write_text(arguments.junit, records.junit(name, report.verdict.parts, report.seconds))
    if arguments.report:
        speed = report.evidence.speed
        _write_page(arguments.report, "hnas-bench check", _rows_of(report), speed, report.to_json())
    if arguments.json:
        print_lines([records.to_text(report.to_json())])
    else:
        print_rows(_rows_of(report))
    return report.verdict.exit_code


def _run_compare(arguments: argparse.Namespace) -> int:
    """Run ``hnas-bench compare``; it judges nothing and returns 0."""
    from hnas.benchmarks.gate import records
    from hnas.benchmarks.gate.contrast import compare_artifacts

    if arguments.report:
        records.require_writable(arguments.report)
    with show_progress() as show:
        found = compare_artifacts((arguments.a, arguments.b), arguments.input_shape, _options(arguments), show)
    if arguments.report:
        _write_page(arguments.report, "hnas-bench compare", _rows_compared(found), found.ratio, found.to_json())
    if arguments.json:
        print_lines([records.to_text(found.to_json())])
    else:
        print_rows(_rows_compared(found))
    return 0


def _write_page(
    file: Path, title: str, rows: Sequence[tuple[str, str]], ratio: Ratio | None, record: Mapping[str, object]
) -> None:
    """Write the report of a check or of a comparison."""
    from hnas.benchmarks.gate.records import to_text
    from hnas.files import write_text
    from hnas.pages.bench import bench_page

    write_text(file, bench_page(title, rows, () if ratio is None else ratio.rounds, to_text(record)))


def _rows_of(report: GateReport) -> list[tuple[str, str]]:
    """Return a check as rows: the claim, the measurements, and the verdict last."""
    claim, verdict, evidence = report.evidence.claim, report.verdict, report.evidence
    rows = [("bundle", f"{claim.name}: {claim.target}, {claim.backend}, {claim.precision}")]
    if claim.speedup is not None and claim.speedup_value is not None:
        low, high = claim.speedup
        figures = f"{claim.speedup_value:.2f}x [{low:.2f}, {high:.2f}]"
        load = f"; at that time {claim.load}" if claim.load else ""
        rows.append(("claimed", f"{figures} {claim.kind}, against {claim.against}{load}"))
    if verdict.threshold is not None:
        source = "--min-speedup" if evidence.min_speedup is not None else "from the claim"
        rows.append(("threshold", f"{verdict.threshold:.2f}x, {source}"))
    if evidence.noise:
        rows.append(("noise", f"baseline against itself {evidence.noise.line()}"))
    if evidence.speed:
        rows.append(("measured", evidence.speed.line()))
    if report.load:
        rows.append(("load", report.load.line()))
    rows += [(part.name, f"{part.outcome}: {part.line}") for part in verdict.parts]
    return [*rows, ("verdict", f"{verdict.outcome} (exit code {verdict.exit_code}, {report.seconds:.0f} s)")]


def _rows_compared(found: Contrast) -> list[tuple[str, str]]:
    """Return a comparison as rows."""
    sides = [
        (name, f"{side.path}: {side.backend}, {side.precision}, threads {side.threads}, median {side.median_ms:.3f} ms")
        for name, side in (("a", found.a), ("b", found.b))
    ]
    return [*sides, ("verdict", found.line()), ("outputs of b", found.difference.line())]
