"""The sub-command ``score`` of ``hnas-deploy``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hnas import report
from hnas.cli.arguments import Parser


def make_score_parser() -> Parser:
    """Return the parser of ``hnas-deploy score``."""
    parser = Parser(
        "hnas-deploy score",
        description="Evaluate subnets of a supernet once. Later searches of it are quicker and depend less on luck.",
    )
    parser.add_argument("--supernet", type=Path, metavar="DIR", required=True, help="folder that hnas-train wrote")
    parser.add_argument("--data", type=Path, metavar="DIR", help="its images (default: the shipped images)")
    parser.add_argument("--subnets", type=int, default=300, metavar="N", help="number of subnets (default: 300)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    return parser


def run_score(arguments: Sequence[str]) -> int:
    """Run ``hnas-deploy score``."""
    parsed = make_score_parser().parse_args(arguments)
    from hnas.deployment.scoring import score

    with report.show_stages(quiet=parsed.json) as on:
        found = score(parsed.supernet, parsed.data, parsed.subnets, on)
    if parsed.json:
        report.print_json(found)
    else:
        accuracies = f"accuracies from {found['lowest']:.2%} to {found['highest']:.2%} of the search images"
        report.print_lines([f"{found['subnets']} subnets scored, {accuracies} -> {parsed.supernet}"])
    return 0
