"""The sub-commands ``export`` and ``verify`` of ``hnas-deploy``, which import torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hnas import report
from hnas.cli.arguments import WIDE, Parser, add_flags
from hnas.cli.pages import add_picture, check_picture, show_deployment
from hnas.cli.zoo import add_signature
from hnas.deployment import deploy_network


def make_export_parser() -> Parser:
    """Return the parser of ``hnas-deploy export``, whose flags are the parameters of `hnas.deploy_network`."""
    parser = Parser(
        "hnas-deploy export", description="Compile, verify and measure a static network of your own, and bundle it."
    )
    parser.add_argument("network", nargs="?", metavar="NETWORK", help="FILE.onnx, or as --model")
    add_flags(parser, deploy_network, optional=("model",))
    add_picture(parser)
    parser.add_argument("--wide", action="store_true", help=WIDE)
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    parser.add_config()
    return parser


def run_export(arguments: Sequence[str]) -> int:
    """Run ``hnas-deploy export``."""
    parser = make_export_parser()
    options = vars(parser.parse_args(arguments))
    as_json, network, wide = options.pop("json"), options.pop("network"), options.pop("wide")
    picture = check_picture(options.pop("png"))
    if (network is None) == (options["model"] is None):
        parser.error("give one network: FILE.onnx or PACKAGE.MODULE:CALLABLE")
    if network is not None:
        options["model"] = network
    _add_current_folder()
    with report.show_stages(quiet=as_json) as on:
        found = deploy_network(**options, on=on)
    show_deployment(found, picture, as_json=as_json, wide=wide)
    return 0


def make_verify_parser() -> Parser:
    """Return the parser of ``hnas-deploy verify``."""
    parser = Parser("hnas-deploy verify", description="Compare the files of a bundle with the network in eager torch.")
    add: Any = parser.add_argument
    add("path", type=Path, metavar="DIR", help="a bundle, or the folder of a failure that --reduce saved")
    add("--supernet", type=Path, metavar="DIR", help="supernet of a searched bundle (default: the shipped supernet)")
    add("--data", type=Path, metavar="DIR", help="images for its subnets (default: the shipped slice)")
    add("--model", metavar="PACKAGE.MODULE:CALLABLE", help="the network of the bundle, if it is your own")
    add("--calibration", type=Path, metavar="FILE", help="with --model: .npz, .npy or .pt of real inputs [N, ...]")
    add(
        "--reduce",
        action="store_true",
        help="shrink a failing network to its smallest failing part, and save it",
    )
    add("--out", type=Path, metavar="DIR", help="where --reduce saves (default: DIR-failing)")
    add_signature(parser)
    add("--json", action="store_true", help="print the result as JSON on standard output")
    return parser


def run_verify(arguments: Sequence[str]) -> int:
    """Run ``hnas-deploy verify``. Return 0 if all files pass, else 1."""
    parsed = make_verify_parser().parse_args(arguments)
    options = {name: value for name, value in vars(parsed).items() if name not in ("json", "require_signature")}
    if not options["path"].is_dir():
        raise FileNotFoundError(f"no bundle at {options['path']}; give the folder that hnas-deploy wrote")
    if parsed.require_signature is not None:
        from hnas.export.zoo.signing import check_signature

        check_signature(parsed.path, parsed.require_signature)
    from hnas.deployment.verify import verify_bundle

    _add_current_folder()
    found = verify_bundle(**options)
    if parsed.json:
        report.print_json(found)
    else:
        report.print_lines(_verification_lines(found))
    return 0 if found["passed"] else 1


def _add_current_folder() -> None:
    """Add the current folder to the module path, so that Python finds the user's modules."""
    sys.path.insert(0, str(Path.cwd()))


def _verification_lines(found: dict[str, Any]) -> list[str]:
    """Return the result of a verification as lines of text."""
    said = []
    for row in found["rows"]:
        said.append(f"{row['file']} ({row['backend']}, {row['precision']}): {row['line']}")
        if "was" in row:
            said.append(f"  when it was saved: {row['was']}")
        small = row.get("reduced")
        if small is not None:
            size = f"{small['operators']} operator(s): " if "operators" in small else ""
            said.append(f"  reduced: {size}{small['line']}")
        if small is not None and "command" in small:
            said.append(f"  again: {small['command']}")
    if not found["passed"] and not any("reduced" in row or "was" in row for row in found["rows"]):
        said.append("--reduce finds the smallest part that fails, and saves it")
    return said
