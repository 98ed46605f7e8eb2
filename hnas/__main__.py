"""Run the commands as modules: ``python -m hnas deploy --target openvino-cpu``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

_PROGRAMS = {
    "deploy": "search a trained supernet for a device, or build a network of your own (hnas-deploy)",
    "train": "train a supernet on a folder of images (hnas-train)",
    "bench": "check the claims of a bundle, compare two artifacts (hnas-bench)",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the commands and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in _PROGRAMS:
        name, rest = given[0], given[1:]
        if name == "bench":
            from hnas.benchmarks.cli import main as bench_main

            return bench_main(rest)
        from hnas.cli import deploy_main, train_main

        return deploy_main(rest) if name == "deploy" else train_main(rest)
    from hnas.cli.arguments import Parser
    from hnas.nearest import did_you_mean

    listed = "\n".join(f"  python -m hnas {name:<7} {what}" for name, what in _PROGRAMS.items())
    parser = Parser(
        "python -m hnas",
        description="Search a network for a device, and get a folder that runs there, verified and measured.",
        epilog=f"commands:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="deploy, train or bench; then its own arguments")
    found = parser.parse_known_args(given)[0].command
    if found is not None:
        parser.error(f"no command {found!r}{did_you_mean(found, _PROGRAMS)}")
    parser.print_help()
    return 0


if __name__ == "__main__":
    sys.exit(main())
