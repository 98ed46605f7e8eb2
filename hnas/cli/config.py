"""Read the flags of a command from a TOML file, and write them as one: ``--config run.toml``, ``--print-config``."""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnas.nearest import did_you_mean

if TYPE_CHECKING:
    from hnas.cli.arguments import Parser

_LARGEST = 2**20  # bytes of a file
_OWN = ("help", argparse.SUPPRESS, "config", "print_config")


def find_file(words: Sequence[str]) -> str | None:
    """Return the value of ``--config`` among the arguments of a command, or None."""
    for index, word in enumerate(words):
        if word == "--config" and index + 1 < len(words):
            return words[index + 1]
        if word.startswith("--config="):
            return word.partition("=")[2]
    return None


def flags_of(parser: Parser, file: str | None, given: Sequence[str]) -> list[str]:
    """Return the flags that a file states, as words of a command line. A flag that is ``given`` wins.

    A wrong file ends the command through ``parser.error``.
    """
    if file is None:
        return []
    known = {flag: action for flag, action in _flags(parser).items() if action.dest not in _OWN}
    taken = {known[flag].dest for word in given if (flag := word.partition("=")[0]) in known}
    words = []
    for key, value in _read(parser, file).items():
        flag = f"--{key.replace('_', '-')}"
        if flag not in known:
            names = [name[2:] for name in known]
            parser.error(f"{file}: unknown key {key!r}{did_you_mean(flag[2:], names)}; known: {', '.join(names)}")
        if known[flag].dest not in taken:
            words += _words(parser, f"{file}: {key}", flag, known[flag], value)
    return words


def _flags(parser: Parser) -> dict[str, argparse.Action]:
    return {flag: action for action in parser._actions for flag in action.option_strings if flag.startswith("--")}


def _read(parser: Parser, file: str) -> dict[str, Any]:
    from hnas.files import read_plain

    try:
        return tomllib.loads(read_plain(Path(file), _LARGEST).decode())
    except FileNotFoundError:
        parser.error(f"no configuration file {file}")
    except (OSError, ValueError, RecursionError) as error:
        parser.error(f"{file} cannot be read as TOML: {' '.join(str(error).split())}")


def _words(parser: Parser, where: str, flag: str, action: argparse.Action, value: Any) -> list[str]:
    """Return one key of the file as words of a command line."""
    if action.nargs == 0:  # a switch
        if not isinstance(value, bool):
            parser.error(f"{where} is {value!r}, expected true or false")
        return [flag] if value else []
    values = value if isinstance(value, list) and isinstance(action, argparse._AppendAction) else [value]
    if any(isinstance(each, bool | list | dict) for each in values):
        parser.error(f"{where} is {json.dumps(value, default=str)}, expected text or a number")
    return [f"{flag}={each}" for each in values]


def as_toml(parser: Parser, parsed: argparse.Namespace) -> str:
    """Return the parsed flags as the text of a file that ``--config`` reads. Flags without a value are left out.

    No character in the text can command a terminal.
    """
    lines = []
    for action in parser._actions:
        value = getattr(parsed, action.dest, None)
        if not action.option_strings or action.dest in _OWN or value is None or value is False or value == []:
            continue
        plain = value if isinstance(value, bool | int | float | list) else str(value)
        flag = next(flag for flag in action.option_strings if flag.startswith("--"))
        lines.append(f"{flag[2:]} = {_escaped(json.dumps(plain, ensure_ascii=False, default=str))}\n")
    return "".join(lines)


def _escaped(text: str) -> str:
    """Return TOML with each character that a terminal may obey as an escape: ``uXXXX`` after a backslash."""
    return "".join(
        c if c.isprintable() else f"\\U{ord(c):08X}" if ord(c) > 0xFFFF else f"\\u{ord(c):04X}" for c in text
    )
