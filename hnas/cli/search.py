"""The command ``hnas-deploy --target DEVICE``: deploy a subnet of a supernet."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from hnas.cli.arguments import WIDE, Parser, add_flags
from hnas.cli.pages import add_picture, check_picture, show_deployment
from hnas.deployment import deploy

_EXAMPLES = """examples:
  hnas-deploy --target openvino-cpu
  hnas-deploy --target jetson --power MAXN_SUPER --max-latency 5ms --out runs/robot
  hnas-deploy --target raspberry-pi-5 --host ssh://pi@raspberrypi
  hnas-deploy --target onnxruntime-cpu --supernet trained/ --data photos/ --min-accuracy 92%
"""


def make_deploy_parser(commands: Mapping[str, str]) -> Parser:
    """Return the parser, whose flags are the parameters of `hnas.deploy`. ``commands`` are listed in the help."""
    listed = "\n".join(f"  hnas-deploy {name:<8} {what}" for name, what in commands.items())
    parser = Parser(
        "hnas-deploy",
        description="Search a trained supernet for a device and write a folder that runs there, verified and measured.",
        epilog=f"commands:\n{listed}\n\n{_EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_flags(parser, deploy)
    add_picture(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the resolved plan and its cost, and stop")
    parser.add_argument("--wide", action="store_true", help=WIDE)
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    parser.add_config()
    return parser


def run_deploy(parsed: argparse.Namespace) -> int:
    """Run the command. Return its exit code."""
    from hnas import report

    options = vars(parsed)
    as_json, dry, wide = options.pop("json"), options.pop("dry_run"), options.pop("wide")
    picture = check_picture(options.pop("png"))
    if dry:
        return _print_plan(options, as_json=as_json)
    with report.show_stages(quiet=as_json) as on:
        found = deploy(**options, on=on)
    show_deployment(found, picture, as_json=as_json, wide=wide)
    return 0


def _print_plan(options: Mapping[str, object], *, as_json: bool) -> int:
    """Print the plan and an estimate of its duration. Refuse what the deployment would refuse, and write nothing."""
    from hnas import report
    from hnas.deployment.options import SearchOptions
    from hnas.deployment.places import check_places, try_writing
    from hnas.deployment.plan import require_packages, resolve

    plan = resolve(SearchOptions(**options))  # type: ignore[arg-type]  # the fields are the flags, as a test holds
    check_places(plan, resume=bool(options["resume"]))
    try_writing(plan.out)
    require_packages(plan, search=True)
    from hnas.deployment.estimate import estimate_search

    cost = estimate_search(plan)
    if as_json:
        report.print_json({"plan": plan.identity(), "out": str(plan.out), "cost": cost})
    else:
        report.print_plan([*plan.lines(), ("cost", cost)])
    return 0
