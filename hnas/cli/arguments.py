"""Make the flags of a command from the parameters of the function that it calls. Errors are one line.

Call `add_flags(parser, function)`: names, types and defaults come from the signature, help from the docstring.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Collection
from typing import Any, NoReturn

from hnas.nearest import did_you_mean

WIDE = "print every column of the table, however wide the screen is"
_METAVARS = {
    "target": "DEVICE",
    "power": "MODE",
    "max_latency": "TIME",
    "min_accuracy": "SHARE",
    "max_size": "SIZE",
    "precision": "P",
    "limit": "dB|SHARE",
    "budget": "B",
    "seed": "N",
    "threads": "N",
    "supernet": "DIR",
    "data": "DIR",
    "host": "URL",
    "out": "DIR",
    "model": "PACKAGE.MODULE:CALLABLE",
    "input": "1x3x64x64",
    "dynamic": "INPUT:0=batch",
    "calibration": "FILE",
}
_ENTRY = re.compile(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", re.MULTILINE)  # of the section Args of a docstring


class Parser(argparse.ArgumentParser):
    """An ArgumentParser with ``--version``, whose errors are one line with the nearest known word."""

    def __init__(self, prog: str | None = None, **options: Any) -> None:
        super().__init__(prog, **options)
        self._configurable = False
        if self.add_help:
            none = argparse.SUPPRESS  # the flag leaves no value
            self.add_argument("--version", action=_Version, nargs=0, dest=none, default=none, help="print the version")

    def add_config(self) -> None:
        """Add the flags ``--config FILE``, whose TOML keys are flags, and ``--print-config``."""
        self._configurable = True
        self.add_argument("--config", metavar="FILE.toml", help="read flags from this file; those given here win")
        self.add_argument("--print-config", action="store_true", help="print the flags as such a file, and stop")

    def add_completion(self, complete: Callable[[str], str]) -> None:
        """Add the flag ``--print-completion SHELL``, which prints what ``complete`` returns for bash, zsh or tcsh."""

        class _Print(argparse.Action):
            def __call__(self, parser: argparse.ArgumentParser, _: Any, shell: Any, *__: Any) -> NoReturn:
                from hnas.cli.ending import guarded

                parser.exit(guarded(parser.prog, lambda: sys.stdout.write(complete(shell)) and 0))

        none = argparse.SUPPRESS
        shells, told = ("bash", "zsh", "tcsh"), "print a script that completes this command, and stop"
        self.add_argument("--print-completion", action=_Print, choices=shells, dest=none, default=none, help=told)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the arguments. Refuse what no value can be: nothing, a NUL, bytes that are no text."""
        words = [str(word) for word in (sys.argv[1:] if args is None else args)]
        for word in words:
            self._check_word(word)
        if not self._configurable:
            return super().parse_known_args(words, namespace)
        from hnas.cli import config

        read = config.find_file(words)
        parsed, rest = super().parse_known_args(config.flags_of(self, read, words) + words, namespace)
        if parsed.config != read:
            self.error("write --config in full")
        del parsed.config
        if parsed.print_config and not rest:
            sys.stdout.write(config.as_toml(self, parsed))
            self.exit(0)
        del parsed.print_config
        return parsed, rest

    def _check_word(self, word: str) -> None:
        flag, _, value = word.partition("=")
        if not word or (flag.startswith("--") and "=" in word and not value):
            self.error(f"{flag or 'an argument'} is empty; leave it out or give a value")
        if "\0" in word or any("\ud800" <= c <= "\udfff" for c in word):
            self.error(f"{word[:60]} has a NUL character, or is not UTF-8 text")

    def error(self, message: str) -> NoReturn:
        """Print the message alone, with the nearest known word, and exit with code 2."""
        from hnas.export.device.errors import printable

        self.exit(2, f"{self.prog}: {printable(message)}{self._nearest(message)}; see {self.prog} --help\n")

    def _nearest(self, message: str) -> str:
        """Return "; did you mean ...?" for a message about an unknown flag or command, else an empty text."""
        if found := re.match(r"unrecognized arguments: (--[\w-]+)", message):
            return did_you_mean(found[1], self.known_flags())
        if found := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            return did_you_mean(found[1], found[2].replace("'", "").split(", "))
        return ""

    def known_flags(self) -> list[str]:
        """Return the long flags of this command and of its sub-commands."""
        found = []
        for action in self._actions:
            found += [flag for flag in action.option_strings if flag.startswith("--")]
            if isinstance(action, argparse._SubParsersAction):
                found += [flag for parser in action.choices.values() for flag in parser.known_flags()]
        return found


class _Version(argparse.Action):
    """Print the version of hnas, which is read only where it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> NoReturn:
        """Print "hnas VERSION" and exit with code 0."""
        from importlib.metadata import version

        sys.stdout.write(f"hnas {version('hnas')}\n")
        parser.exit(0)


def _whole_number(text: str) -> int:
    """Return an integer.

    Raises:
        argparse.ArgumentTypeError: ``text`` is something else.
    """
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def add_flags(
    parser: argparse.ArgumentParser, function: Callable[..., Any], *, optional: Collection[str] = (), skip: str = "on"
) -> None:
    """Add a flag for each parameter of ``function``: ``max_latency`` becomes ``--max-latency``.

    A bool becomes a switch. A Sequence becomes a flag in the singular that may be repeated. An int takes an integer.
    Any other parameter takes text.

    optional: parameters without a default that are not required as flags.
    skip: the parameter that gets no flag.
    """
    texts = parameter_texts(function)
    for name, parameter in inspect.signature(function).parameters.items():
        if name == skip:
            continue
        kind = str(parameter.annotation)
        options: dict[str, Any] = {"dest": name, "help": texts[name].replace("%", "%%")}
        flag = name
        if parameter.default is inspect.Parameter.empty:
            options["required"] = name not in optional
        else:
            options["default"] = parameter.default
        if kind == "bool":
            parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", **options)
            continue
        if kind.startswith("Sequence"):
            flag, options["action"] = name.removesuffix("s"), "append"
        elif kind.startswith("int"):
            options["type"] = _whole_number
            if parameter.default is not None:
                options["help"] += f" (default {parameter.default})"
        parser.add_argument(f"--{flag.replace('_', '-')}", metavar=_METAVARS[flag], **options)


def parameter_texts(function: Callable[..., Any]) -> dict[str, str]:
    """Return parameter -> its text under ``Args`` in the docstring of ``function``, on one line."""
    section = (inspect.getdoc(function) or "").partition("\nArgs:\n")[2].partition("\n\n")[0]
    return {name: " ".join(text.split()) for name, text in _ENTRY.findall(section)}
