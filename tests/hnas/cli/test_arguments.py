"""The flags of a command are the parameters of its function: one list, in the signature, with its docstring."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any

import pytest

from hnas.cli import COMMANDS, search
from hnas.cli.arguments import Parser, add_flags, parameter_texts
from hnas.deployment import deploy, deploy_network
from hnas.deployment.options import NetworkOptions, SearchOptions

OWN = {
    "help",
    "==SUPPRESS==",
    "config",
    "print_config",
    "json",
    "wide",
    "dry_run",
    "png",
}  # flags that are the command's alone


def flags_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {action.dest: action for action in parser._actions if action.option_strings and action.dest not in OWN}


def parameters_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    found = dict(inspect.signature(function).parameters)
    del found["on"]
    return found


def network_parser() -> Parser:
    parser = Parser("export")
    add_flags(parser, deploy_network, optional=("model",))
    return parser


@pytest.mark.parametrize(
    ("parser", "function", "record"),
    [(search.make_deploy_parser(COMMANDS), deploy, SearchOptions), (network_parser(), deploy_network, NetworkOptions)],
    ids=["deploy", "deploy_network"],
)
def test_flags_parameters_and_options_are_the_same(
    parser: argparse.ArgumentParser, function: Callable[..., Any], record: Any
) -> None:
    flags, parameters = flags_of(parser), parameters_of(function)
    assert list(flags) == list(parameters) == [field.name for field in fields(record)]
    for field in fields(record):
        default = parameters[field.name].default
        assert (field.default is MISSING) == (default is inspect.Parameter.empty)
        if default is not inspect.Parameter.empty:
            assert flags[field.name].default == default == field.default
    texts = parameter_texts(function)
    assert all(flags[name].help.replace("%%", "%").startswith(texts[name]) for name in flags)
    assert set(texts) == {*parameters, "on"}


def test_a_flag_is_spelled_and_read_by_its_type() -> None:
    def work(
        target: str,
        *,
        max_size: str | None = None,
        inputs: Any = None,
        seed: int = 3,
        resume: bool = False,
        on: Any = 0,
    ) -> None:
        """Work.

        Args:
            target: a device
            max_size: at most, of which there is
                more to say, e.g. 92%
            inputs: one after the other
            seed: of the work
            resume: go on
            on: is called

        Return nothing.
        """

    work.__annotations__["inputs"] = "Sequence[str] | None"
    parser = Parser("work")
    add_flags(parser, work)
    found = parser.parse_args(["--target", "x", "--input", "1", "--input", "2", "--seed", "7", "--resume"])
    assert vars(found) == {"target": "x", "max_size": None, "inputs": ["1", "2"], "seed": 7, "resume": True}
    assert parameter_texts(work)["max_size"] == "at most, of which there is more to say, e.g. 92%"
    with pytest.raises(SystemExit):
        parser.parse_args([])
    assert "of the work (default 3)" in parser.format_help()
