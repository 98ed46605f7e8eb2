"""``python -m hnas.benchmarks.papers STUDY``: put a published claim to the test and print the verdict."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from hnas.benchmarks.papers import catalogue
from hnas.benchmarks.papers.claims import PASSES, SEEDS, Claim, Plan
from hnas.benchmarks.papers.parts import Parts
from hnas.benchmarks.papers.printing import show
from hnas.files import write_json

USAGE = 2
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the studies that are asked for; a user's mistake is one line, a negative verdict is no failure."""
    arguments = parser().parse_args(argv)
    try:
        return run(arguments)
    except KeyboardInterrupt:
        return complain("interrupted; the same command goes on from the finished parts", INTERRUPTED)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        return complain(str(error), USAGE)


def run(arguments: argparse.Namespace) -> int:
    """Run, print and write."""
    found = catalogue.find()
    wanted = list(found) if arguments.study == "all" else [arguments.study]
    if unknown := [name for name in wanted if name not in found]:
        raise ValueError(f"no study {unknown[0]!r}; known: {', '.join(found)}, all")
    plan = plan_of(arguments)
    console = Console(stderr=arguments.json)
    parts = Parts(arguments.out / "parts", plan.images, arguments.workers)
    written = []
    try:
        for name in wanted:
            written.append(study(found[name], plan, parts, arguments.out, console))
    finally:
        parts.close()
    if arguments.json:
        print(json.dumps(written if arguments.study == "all" else written[0], indent=1))  # noqa: T201 - the output
    return 0


def study(claim: Claim, plan: Plan, parts: Parts, out: Path, console: Console) -> dict[str, object]:
    """Run one study; its record is written to ``out`` and returned."""
    report = claim.run(plan, parts, console.print)
    show(console, claim, plan, report)
    record = claim.to_json(plan, parts)
    size = "-quick" if plan.quick else "" if plan.passes == PASSES else f"-{plan.passes}"
    file = out / f"{claim.name}{size}.json"
    write_json(file, record)
    console.print(f"  written to {file}\n")
    return record


def plan_of(arguments: argparse.Namespace) -> Plan:
    """The plan that the arguments describe; a folder that is missing is said at once."""
    less: dict[str, Any] = {"only": tuple(arguments.only), "alone": not arguments.inherited}
    plan = Plan(arguments.seeds or SEEDS, arguments.passes or PASSES, arguments.data, False, arguments.nasbench, **less)
    for path in (arguments.data, arguments.nasbench):
        if path is not None and not path.exists():
            raise FileNotFoundError(f"no {path}; leave it out to do without")
    if not arguments.quick:
        return plan
    quick = plan.smallest
    return replace(quick, seeds=arguments.seeds or quick.seeds, passes=arguments.passes or quick.passes)


def parser() -> argparse.ArgumentParser:
    """The grammar of the command."""
    top = argparse.ArgumentParser("python -m hnas.benchmarks.papers", description=main.__doc__)
    top.add_argument("study", metavar="STUDY", help="A1 ... D5, or all")
    top.add_argument("--quick", action="store_true", help="so small that only the machinery is tested")
    top.add_argument("--seeds", type=positive, metavar="N", help=f"runs of each setting (default {SEEDS})")
    top.add_argument("--passes", type=positive, metavar="N", help=f"path passes of a run (default {PASSES})")
    help_only = "A3, A4: only this training of their tables; may be repeated"
    top.add_argument("--only", action="append", default=[], metavar="TRAINING", help=help_only)
    top.add_argument("--inherited", action="store_true", help="A1, A3: inherited weights only, nothing trained alone")
    top.add_argument("--out", type=Path, default=Path("runs/papers"), metavar="DIR", help="default: %(default)s")
    top.add_argument("--data", type=Path, metavar="DIR", help="Fashion-MNIST's four IDX files (default: digits)")
    top.add_argument("--nasbench", type=Path, metavar="FILE", help="CSV of published NAS-Bench-201 accuracies, for D1")
    top.add_argument("--workers", type=positive, default=min(2, os.cpu_count() or 1), metavar="N", help="processes")
    top.add_argument("--json", action="store_true", help="print the record as JSON and nothing else")
    return top


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def complain(line: str, code: int) -> int:
    """Print one line to stderr and give the exit code back."""
    print(f"hnas.benchmarks.papers: {line}", file=sys.stderr)  # noqa: T201 - one line, without rich
    return code


if __name__ == "__main__":
    sys.exit(main())
