"""Test a published claim and print the verdict: ``python -m hnas.benchmarks.papers STUDY``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from hnas.benchmarks.cli import count
from hnas.benchmarks.papers.catalogue import find_claims
from hnas.benchmarks.papers.claims import PASSES, SEEDS, Claim, StudyPlan
from hnas.benchmarks.papers.parts import StudyParts
from hnas.benchmarks.papers.printing import print_study
from hnas.files import write_json

_USAGE = 2
_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the studies and return the exit code: 0 for every verdict, 2 for wrong use, 130 if interrupted."""
    arguments = parser().parse_args(argv)
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return _complain("interrupted; the same command continues from the finished parts", _INTERRUPTED)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        return _complain(str(error), _USAGE)


def _run(arguments: argparse.Namespace) -> int:
    """Run the studies, print them and write their records."""
    found = find_claims()
    wanted = list(found) if arguments.study == "all" else [arguments.study]
    if unknown := [name for name in wanted if name not in found]:
        raise ValueError(f"no study {unknown[0]!r}; known: {', '.join(found)}, all")
    plan = _plan_of(arguments)
    console = Console(stderr=arguments.json)
    parts = StudyParts(arguments.out / "parts", plan.images, arguments.workers)
    written = []
    try:
        for name in wanted:
            written.append(_run_study(found[name], plan, parts, arguments.out, console))
    finally:
        parts.close()
    if arguments.json:
        print(json.dumps(written if arguments.study == "all" else written[0], indent=1))  # noqa: T201 - the output
    return 0


def _run_study(claim: Claim, plan: StudyPlan, parts: StudyParts, out: Path, console: Console) -> dict[str, object]:
    """Run one study; write its record to ``out`` and return it."""
    report = claim.run(plan, parts, console.print)
    print_study(console, claim, plan, report)
    record = claim.to_json(plan, parts)
    size = "-quick" if plan.quick else "" if plan.passes == PASSES else f"-{plan.passes}"
    file = out / f"{claim.name}{size}.json"
    write_json(file, record)
    console.print(f"  written to {file}\n")
    return record


def _plan_of(arguments: argparse.Namespace) -> StudyPlan:
    """Return the plan that the arguments describe; raise FileNotFoundError for a missing folder."""
    plan = StudyPlan(
        seeds=arguments.seeds or SEEDS,
        passes=arguments.passes or PASSES,
        images=arguments.data,
        nasbench=arguments.nasbench,
        only=tuple(arguments.only),
        alone=not arguments.inherited,
    )
    for path in (arguments.data, arguments.nasbench):
        if path is not None and not path.exists():
            raise FileNotFoundError(f"no {path}; leave it out to do without")
    if not arguments.quick:
        return plan
    quick = plan.smallest
    return replace(quick, seeds=arguments.seeds or quick.seeds, passes=arguments.passes or quick.passes)


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    top = argparse.ArgumentParser(
        "python -m hnas.benchmarks.papers", description="Test a published claim and print the verdict."
    )
    top.add_argument("study", metavar="STUDY", help="A1 ... E6, or all")
    top.add_argument("--quick", action="store_true", help="a very small run that tests only the program")
    top.add_argument("--seeds", type=count, metavar="N", help=f"runs of each setting (default {SEEDS})")
    top.add_argument("--passes", type=count, metavar="N", help=f"path passes of a run (default {PASSES})")
    help_data = "Fashion-MNIST's four IDX files (default: digits); text.txt, for C2 and C4"
    help_only = "A3, A4: compare only this training; may be repeated"
    top.add_argument("--only", action="append", default=[], metavar="TRAINING", help=help_only)
    top.add_argument("--inherited", action="store_true", help="A1, A3: inherited weights only; train nothing alone")
    top.add_argument(
        "--out", type=Path, default=Path("runs/papers"), metavar="DIR", help="records and parts (default %(default)s)"
    )
    top.add_argument("--data", type=Path, metavar="DIR", help=help_data)
    top.add_argument("--nasbench", type=Path, metavar="FILE", help="CSV of published NAS-Bench-201 accuracies, for D1")
    top.add_argument(
        "--workers",
        type=count,
        default=min(2, os.cpu_count() or 1),
        metavar="N",
        help="processes that run parts side by side (default %(default)s)",
    )
    top.add_argument("--json", action="store_true", help="print the record as JSON and nothing else")
    return top


def _complain(line: str, code: int) -> int:
    """Print one line to stderr and return the exit code."""
    print(f"hnas.benchmarks.papers: {line}", file=sys.stderr)  # noqa: T201 - one line, without rich
    return code


if __name__ == "__main__":
    sys.exit(main())
