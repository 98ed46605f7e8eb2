"""Completion of the commands in a shell: ``hnas-deploy --print-completion bash``. shtab writes the script."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from typing import Any

from hnas.cli.arguments import Parser


def complete_deploy(listed_commands: Mapping[str, str], shell: str) -> str:
    """Return the script that completes ``hnas-deploy``, with its commands, devices, precisions and files.

    listed_commands: name -> help of each command.
    """
    from hnas.cli import commands, network, scoring, search, zoo

    makers = {
        "export": network.make_export_parser,
        "targets": commands.make_targets_parser,
        "doctor": commands.make_doctor_parser,
        "show": commands.make_show_parser,
        "score": scoring.make_score_parser,
        "run": commands.make_run_parser,
        "verify": network.make_verify_parser,
        "sign": zoo.make_sign_parser,
        "pack": zoo.make_pack_parser,
        "push": zoo.make_push_parser,
        "pull": zoo.make_pull_parser,
        "zoo": zoo.make_zoo_parser,
    }
    parser = search.make_deploy_parser(listed_commands)
    listed = parser.add_subparsers(metavar="COMMAND")
    for name, text in listed_commands.items():
        made = makers[name]()
        listed.add_parser(name, help=text, parents=[made], add_help=False)
    return script_of(parser, shell)


def script_of(parser: Parser, shell: str) -> str:
    """Return the script that completes the command of ``parser`` in bash, zsh or tcsh.

    Raises:
        Unavailable: shtab is not installed.
    """
    from hnas.export.device.errors import needing

    with needing("completion"):
        import shtab
    for each in _parsers(parser):
        for action in each._actions:
            _offer(action, shtab)
    return str(shtab.complete(parser, shell)) + "\n"


def _parsers(parser: Parser) -> Iterable[Parser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


def _offer(action: argparse.Action, shtab: Any) -> None:
    """Let a shell offer the values of a flag: names of devices and precisions, files or folders."""
    from hnas import hw_profiles
    from hnas.deployment.plan import PRECISIONS

    if action.dest == "target":
        action.choices = [*hw_profiles.names(), *(a for n in hw_profiles.names() for a in hw_profiles.load(n).aliases)]
    elif action.dest == "power":
        action.choices = sorted({mode for name in hw_profiles.names() for mode in hw_profiles.load(name).power_modes})
    elif action.dest == "precision":
        action.choices = list(PRECISIONS)
    elif str(action.metavar).startswith("FILE") or action.metavar in ("A", "B", "NETWORK"):
        action.complete = shtab.FILE  # type: ignore[attr-defined]  # the attribute that shtab reads
    elif action.metavar in ("DIR", "BUNDLE"):
        action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
