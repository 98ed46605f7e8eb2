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

_METAVARS = {
    "target": "DEVICE",
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
    "calibration": "FILE",
}
_ENTRY = re.compile(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", re.MULTILINE)  # of the section Args of a docstring


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the arguments. Refuse what no value can be: nothing, a NUL, bytes that are no text."""
        for word in sys.argv[1:] if args is None else args:
            flag, _, value = str(word).partition("=")
            if not word or (flag.startswith("--") and "=" in word and not value):
                self.error(f"{flag or 'an argument'} is empty; leave it out or give a value")
            if "\0" in word or any("\ud800" <= c <= "\udfff" for c in word):
                self.error(f"{word[:60]} has a NUL character, or is not UTF-8 text")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print the message alone and exit with code 2."""
        from hnas.export.device.errors import printable

        self.exit(2, f"{self.prog}: {printable(message)}; see {self.prog} --help\n")


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
            options["type"] = int
            if parameter.default is not None:
                options["help"] += f" (default {parameter.default})"
        parser.add_argument(f"--{flag.replace('_', '-')}", metavar=_METAVARS[flag], **options)


def parameter_texts(function: Callable[..., Any]) -> dict[str, str]:
    """Return parameter -> its text under ``Args`` in the docstring of ``function``, on one line."""
    section = (inspect.getdoc(function) or "").partition("\nArgs:\n")[2].partition("\n\n")[0]
    return {name: " ".join(text.split()) for name, text in _ENTRY.findall(section)}
