"""Compare our artifacts with those of each runtime's own tools, on 19 networks: ``python -m hnas.benchmarks.peers``.

1. build: make an artifact of every network with hnas and with every peer, in fp32 and int8, in child processes. Slow;
   other load on the machine does no harm.
2. measure: time our artifact, our artifact again, and every peer interleaved, each in a separate process. Needs a
   machine without other load.
3. Print a table, and a line for each promise.

Finished work is kept in ``--out`` and is not repeated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from hnas.benchmarks.peers import limits, making, timing
from hnas.benchmarks.peers import nets as export_nets
from hnas.benchmarks.peers.cases import BACKENDS, OURS, PRECISIONS, Case, Folder, cases, makers
from hnas.benchmarks.peers.verdicts import PromiseVerdict, Result, best, is_slower, judge_promises

_COLOURS = {"holds": "green", "fails": "red", "not seen": "yellow"}
_COLUMNS = ("net", "backend", "", "maker", "ms", "ours by theirs [95 %]", "dB")


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, measure and print; return 1 where a promise fails."""
    options = parser().parse_args(arguments)
    if options.quick:
        with TemporaryDirectory() as folder:
            return _run(options, Folder(options.out or Path(folder)))
    return _run(options, Folder(options.out or Path("runs/export")))


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    made = argparse.ArgumentParser("python -m hnas.benchmarks.peers", description=__doc__)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--out", type=Path, metavar="DIR", help="folder of models and times (default: runs/export)")
    made.add_argument("--phase", choices=("build", "measure", "all"), default="all", help="default: all")
    made.add_argument("--nets", type=_some(export_nets.names()), metavar="A,B", help="default: all that can be loaded")
    made.add_argument("--backends", type=_some(BACKENDS), metavar="A,B", help=f"some of {', '.join(BACKENDS)}")
    made.add_argument("--precisions", type=_some(PRECISIONS), metavar="A,B", help=f"some of {', '.join(PRECISIONS)}")
    made.add_argument(
        "--blocks", type=int, default=12, metavar="N", help="interleaved blocks of a process (default 12)"
    )
    made.add_argument("--processes", type=int, default=3, metavar="N", help="fresh processes of each maker (default 3)")
    made.add_argument("--again", action="store_true", help="build our artifacts again, not those of the peers")
    made.add_argument(
        "--quick", action="store_true", help="run one tiny net in OpenVINO, in one process, to test the program"
    )
    made.add_argument("--json", action="store_true", help="print JSON and nothing else")
    return made


def _run(options: argparse.Namespace, folder: Folder) -> int:
    """Run the phases that were asked for; print the results."""
    console = Console(stderr=True)
    chosen = _chosen(options, console)
    if options.phase in ("build", "all"):
        _build_models(folder, chosen, again=options.again, console=console)
    if options.phase in ("measure", "all"):
        results = _measure(folder, chosen, options, console)
    else:
        results = [found for case in chosen.cases if (found := folder.times(case)) is not None]
    judged = judge_promises(results, folder.limits())
    if options.json:
        record = {"cases": results, "limits": folder.limits(), "verdicts": [vars(each) for each in judged]}
        print(json.dumps(record, indent=1))  # noqa: T201 - the output
    else:
        _show(Console(), results, judged)
    return int(any(each.outcome == "fails" for each in judged))


@dataclass(frozen=True)
class _Chosen:
    """The networks, backends and precisions of a run."""

    nets: Sequence[str]
    backends: Sequence[str]
    precisions: Sequence[str]

    @property
    def cases(self) -> list[Case]:
        """Return every combination."""
        return cases(self.nets, self.backends, self.precisions)


def _chosen(options: argparse.Namespace, console: Console) -> _Chosen:
    """Return the cases of the options; ``--quick`` takes one tiny net in OpenVINO. Print which nets are left out."""
    nets, backends = (tuple(export_nets.TINY), ("openvino",)) if options.quick else (export_nets.names(), BACKENDS)
    found = list[str]()
    for net in options.nets or nets:
        if why := export_nets.missing(net):
            console.print(f"{net} is left out: {why}", soft_wrap=True)
        else:
            found.append(net)
    return _Chosen(found, options.backends or backends, options.precisions or PRECISIONS)


def _measure(folder: Folder, chosen: _Chosen, options: argparse.Namespace, console: Console) -> list[Result]:
    """Measure every case, then what compiling costs, unless the records are there."""
    blocks, processes = (2, 1) if options.quick else (options.blocks, options.processes)
    results: list[Result] = [
        timing.measure_case(folder, case, blocks=blocks, processes=processes)
        for case in _track(console, chosen.cases, "measuring")
    ]
    if folder.limits() is None and not options.quick:
        folder.write_limits(limits.measure_limits(backends=tuple(BACKENDS)))
    return results


def _build_models(folder: Folder, chosen: _Chosen, *, again: bool, console: Console) -> None:
    """Make every artifact that is not there yet; with ``again``, make ours again."""
    jobs = [(net, backend, maker) for net in chosen.nets for backend in chosen.backends for maker in makers(backend)]
    for net, backend, maker in _track(console, jobs, "building"):
        known = [folder.made(case, maker) for case in cases([net], [backend], PRECISIONS)]
        if None in known or (again and maker == OURS):
            for case in cases([net], [backend], PRECISIONS):
                folder.forget(case, maker)
            making.make_apart(folder, net, backend, maker)


def _track(console: Console, items: Sequence[Any], what: str) -> Any:
    """Yield the items, with a progress bar where the console is a terminal."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        yield from bar.track(items, description=what)


def _show(console: Console, results: Sequence[Result], judged: Sequence[PromiseVerdict]) -> None:
    """Print a row for every maker of every case, then a line for every promise."""
    table = Table(*_COLUMNS, box=None, pad_edge=False)
    for result in results:
        fastest = best(result)
        for row in result["rows"]:
            red = row is fastest and is_slower(result)
            table.add_row(*_cells(result, row), style="red" if red else "")
        for row in result.get("defaults", ()):
            table.add_row(*_cells(result, {**row, "maker": f"{row['maker']}, its defaults"}), style="dim")
    console.print(table)
    for each in judged:
        console.print(Text(f"{each.outcome:<9}", _COLOURS[each.outcome]), Text(f"{each.promise}: {each.line}"), sep="")
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
    """Return the type of an option that takes some of ``known``, separated by commas."""

    def some(text: str) -> tuple[str, ...]:
        chosen = tuple(part.strip() for part in text.split(","))
        unknown = [part for part in chosen if part not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"no {unknown[0]!r}; known: {', '.join(known)}")
        return chosen

    return some
