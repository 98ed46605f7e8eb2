"""Compare our artifacts with those of each runtime's own tools, on 13 networks: ``python -m hnas.benchmarks.peers``.

1. build: every network by every maker, fp32 and int8, in child processes; slow, and it minds no neighbours.
2. measure: ours, ours again and every peer in turns, each in its own process; it wants a quiet machine.
3. A table, and a line for each promise. Finished work lies below ``--out`` and is not done again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from hnas.benchmarks.peers import limits, making, timing
from hnas.benchmarks.peers import nets as export_nets
from hnas.benchmarks.peers.cases import BACKENDS, OURS, PRECISIONS, Folder, cases, makers
from hnas.benchmarks.peers.verdicts import Result, Verdict, best, is_slower, verdicts

COLOURS = {"holds": "green", "fails": "red", "not seen": "yellow"}
COLUMNS = ("net", "backend", "", "maker", "ms", "ours by theirs [95 %]", "dB")


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, measure, print; 1 where a promise fails."""
    options = parser().parse_args(arguments)
    if options.quick:
        with TemporaryDirectory() as folder:
            return run(options, Folder(options.out or Path(folder)))
    return run(options, Folder(options.out or Path("runs/export")))


def parser() -> argparse.ArgumentParser:
    """The grammar of the command."""
    made = argparse.ArgumentParser("python -m hnas.benchmarks.peers", description=__doc__)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--out", type=Path, metavar="DIR", help="models and times, kept (default: runs/export)")
    made.add_argument("--phase", choices=("build", "measure", "all"), default="all", help="default: all")
    made.add_argument("--nets", type=_some(export_nets.names()), metavar="A,B", help="default: all thirteen")
    made.add_argument("--backends", type=_some(BACKENDS), metavar="A,B", help=f"of {', '.join(BACKENDS)}")
    made.add_argument("--precisions", type=_some(PRECISIONS), metavar="A,B", help=f"of {', '.join(PRECISIONS)}")
    made.add_argument("--blocks", type=int, default=12, metavar="N", help="turns of everybody a process (default 12)")
    made.add_argument("--processes", type=int, default=3, metavar="N", help="fresh ones of each maker (default 3)")
    made.add_argument("--again", action="store_true", help="build our artifacts anew, not the peers'")
    made.add_argument("--quick", action="store_true", help="one tiny net in OpenVINO, one process: that it works")
    made.add_argument("--json", action="store_true", help="print JSON and nothing else")
    return made


def run(options: argparse.Namespace, folder: Folder) -> int:
    """The phases that were asked for; prints what is known in the end."""
    nets = options.nets or (tuple(export_nets.TINY) if options.quick else export_nets.names())
    backends = options.backends or (("openvino",) if options.quick else BACKENDS)
    precisions = options.precisions or PRECISIONS
    console = Console(stderr=True)
    if options.phase in ("build", "all"):
        build(folder, nets, backends, again=options.again, console=console)
    results = []
    if options.phase in ("measure", "all"):
        blocks, processes = (2, 1) if options.quick else (options.blocks, options.processes)
        for case in _console_progress(console, cases(nets, backends, precisions), "measuring"):
            results.append(timing.measured(folder, case, blocks=blocks, processes=processes))
        if folder.limits() is None and not options.quick:
            folder.write_limits(limits.limits(backends=tuple(BACKENDS)))
    else:
        results = [found for case in cases(nets, backends, precisions) if (found := folder.times(case)) is not None]
    judged = verdicts(results, folder.limits())
    if options.json:
        record = {"cases": results, "limits": folder.limits(), "verdicts": [vars(each) for each in judged]}
        print(json.dumps(record, indent=1))  # noqa: T201 - the output
    else:
        show(Console(), results, judged)
    return int(any(each.outcome == "fails" for each in judged))


def build(folder: Folder, nets: Sequence[str], backends: Sequence[str], *, again: bool, console: Console) -> None:
    """Let every maker make what is not there yet."""
    jobs = [(net, backend, maker) for net in nets for backend in backends for maker in makers(backend)]
    for net, backend, maker in _console_progress(console, jobs, "building"):
        known = [folder.made(case, maker) for case in cases([net], [backend], PRECISIONS)]
        if None in known or (again and maker == OURS):
            for case in cases([net], [backend], PRECISIONS):
                folder.forget(case, maker)
            making.make_apart(folder, net, backend, maker)


def _console_progress(console: Console, items: Sequence[Any], what: str) -> Any:
    """The items, with a bar where somebody looks."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        yield from bar.track(items, description=what)


def show(console: Console, results: Sequence[Result], judged: Sequence[Verdict]) -> None:
    """A row for every maker of every case, then a line for every promise."""
    table = Table(*COLUMNS, box=None, pad_edge=False)
    for result in results:
        fastest = best(result)
        for row in result["rows"]:
            red = row is fastest and is_slower(result)
            table.add_row(*_cells(result, row), style="red" if red else "")
        for row in result.get("defaults", ()):
            table.add_row(*_cells(result, {**row, "maker": f"{row['maker']}, its defaults"}), style="dim")
    console.print(table)
    for each in judged:
        console.print(Text(f"{each.outcome:<9}", COLOURS[each.outcome]), Text(f"{each.promise}: {each.line}"), sep="")
        for line in each.cases:
            console.print(Text(f"          {line}"), soft_wrap=True)


def _cells(result: Result, row: Result) -> list[str]:
    first = row["maker"] == OURS
    case = (result["net"], result["backend"], result["precision"]) if first else ("", "", "")
    if "error" in row:
        return [*case, row["maker"], "", row["error"], ""]
    ratio = row if "ratio" in row else result.get("noise", {}) if first else {}
    figures = f"{ratio['ratio']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]" if ratio else ""
    known = ("median_ms" in row and f"{row['median_ms']:.3f}", "sqnr_db" in row and f"{row['sqnr_db']:.1f}")
    return [*case, row["maker"], known[0] or "", figures + (" itself" if first and ratio else ""), known[1] or ""]


def _some(known: Sequence[str]) -> Any:
    """The type of an option that takes some of ``known``, separated by commas."""

    def some(text: str) -> tuple[str, ...]:
        chosen = tuple(part.strip() for part in text.split(","))
        unknown = [part for part in chosen if part not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"no {unknown[0]!r}; known: {', '.join(known)}")
        return chosen

    return some
