"""Compile networks of timm, torchvision and transformers for each backend, and print a table.

For each family the table shows how many architectures compile and pass their verification. A second table has the
failures by kind. Finished work is kept in ``--out`` and is not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory

from hnas.benchmarks.zoo import architectures, table
from hnas.benchmarks.zoo.jobs import SECONDS, ZooJob, run_job
from hnas.benchmarks.zoo.results_file import ResultsFile
from hnas.deployment.installed import versions_of

BEGIN, END = "<!-- zoo -->\n", "<!-- /zoo -->\n"
RECORDED = Path(__file__).parent / "results" / "coverage.jsonl"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the jobs that are not in the file of results, and print; return 1 if one ended with a traceback."""
    options = parser().parse_args(arguments)
    with TemporaryDirectory() as folder:
        default = Path(folder) / "zoo.jsonl" if options.quick else Path("runs/zoo.jsonl")
        results = ResultsFile(options.out or default)
        chosen = _jobs(options)
        if not options.print:
            _sweep(chosen, results, again=options.failed, seconds=options.seconds)
        records = [record for record in results.records if ZooJob(*(record[key] for key in _KEYS)) in set(chosen)]
    if options.write:
        write_page(options.write, records, results.about)
    sys.stdout.write(json.dumps(records, indent=1) + "\n" if options.json else table.render(records, results.about))
    return int(any(record["outcome"] == "traceback" for record in records))


_KEYS = ("net", "backend", "precision")


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    made = argparse.ArgumentParser("python -m hnas.benchmarks.zoo", description=__doc__)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--out", type=Path, metavar="FILE", help="results as JSON lines (default: runs/zoo.jsonl)")
    made.add_argument(
        "--only", type=lambda text: text.split(","), metavar="A,B", help="names or families, with * (default: all)"
    )
    made.add_argument("--backends", type=_some(table.BACKENDS), default=table.BACKENDS, metavar="A,B")
    made.add_argument("--precisions", type=_some(table.PRECISIONS), default=table.PRECISIONS, metavar="A,B")
    made.add_argument("--failed", action="store_true", help="repeat the jobs that failed")
    made.add_argument("--print", action="store_true", help="run nothing; print what the file of results holds")
    made.add_argument("--seconds", type=int, default=SECONDS, metavar="N", help=f"of a job (default: {SECONDS})")
    made.add_argument("--write", type=Path, metavar="PAGE", help="renew the tables in a page, such as docs/coverage.md")
    made.add_argument("--quick", action="store_true", help="two tiny networks of torch alone, to test the program")
    made.add_argument("--json", action="store_true", help="print JSON and nothing else")
    return made


def write_page(page: Path, records: Sequence[table.Record], about: str) -> None:
    """Replace the tables between the marks of a page. Raise ValueError if it has no marks."""
    text = page.read_text("utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{page} has no lines {BEGIN.strip()} and {END.strip()}")
    page.write_text(
        text.split(BEGIN)[0] + BEGIN + "\n" + table.render(records, about) + "\n" + END + text.split(END)[1], "utf-8"
    )


def _sweep(jobs: Sequence[ZooJob], results: ResultsFile, *, again: bool, seconds: int) -> None:
    """Run the jobs that have no result yet; with ``again``, also those that failed."""
    before = {job: results.get(job) for job in jobs}
    left = [job for job, known in before.items() if known is None or (again and known["outcome"] != "right")]
    if left:
        results.add({"about": _about()})
    for index, job in enumerate(left, 1):
        record = run_job(job, seconds=seconds)
        results.add(record)
        said = f"{record['sqnr_db']} dB" if record["outcome"] == "right" else record["line"]
        name = f"{job.net} {job.backend} {job.precision}"
        sys.stderr.write(f"{index}/{len(left)} {name}: {record['outcome']}, {said} ({record['seconds']} s)\n")


def _about() -> str:
    """Return the date, the machine and the versions of the packages that are installed, as two sentences."""
    packages = ("torch", "timm", "torchvision", "transformers", "onnxruntime", "openvino", "ai-edge-litert")
    found = [f"{name} {version}" for name, version in versions_of(packages).items()]
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    return f"Recorded on {datetime.now(tz=UTC).date().isoformat()} on {machine}. Versions: {', '.join(found)}."


def _jobs(options: argparse.Namespace) -> list[ZooJob]:
    """Return the jobs: fp32 of the first architecture of every family first, for a broad picture early."""
    known = [architectures.find(name) for name in architectures.names("torch" if options.quick else None)]
    if options.only:
        patterns = [pattern.lower() for pattern in options.only]
        known = [
            net for net in known if any(fnmatch(part.lower(), p) for p in patterns for part in (net.name, net.family))
        ]
    rank = {net.name: [each.family for each in known[:place]].count(net.family) for place, net in enumerate(known)}
    known.sort(key=lambda net: rank[net.name])
    return [
        ZooJob(net.name, backend, precision)
        for precision in options.precisions
        for net in known
        for backend in options.backends
    ]


def _some(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Return the type of an option that takes some of ``known``, separated by commas."""

    def some(text: str) -> tuple[str, ...]:
        chosen = tuple(part.strip() for part in text.split(","))
        if unknown := [part for part in chosen if part not in known]:
            raise argparse.ArgumentTypeError(f"no {unknown[0]!r}; known: {', '.join(known)}")
        return chosen

    return some
