"""Every command refuses hostile input in one line, and every command has a case."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from hnas.benchmarks.cli import parser
from hnas.cli import COMMANDS
from tests.hostile.conftest import Refuse
from tests.hostile.corpus import FILES
from tests.hostile.corpus_commands import MORE
from tests.hostile.corpus_search import SEARCH


@pytest.mark.parametrize("name", MORE)
def test_it_is_refused_in_one_line(good: Path, tmp_path: Path, refuse: Refuse, name: str) -> None:
    (tmp_path / "work").mkdir()
    refuse(MORE[name].command, *MORE[name].build(good, tmp_path / "work"))


def test_every_command_has_a_case(good: Path, tmp_path: Path) -> None:
    gate = next(each for each in parser()._actions if isinstance(each, argparse._SubParsersAction))
    names = {"deploy": {*COMMANDS}, "train": {"grow"}, "bench": {*gate.choices}}
    waiting = {(command, word) for command, words in names.items() for word in words} | {("deploy", ""), ("train", "")}
    for number, case in enumerate((*MORE.values(), *FILES.values(), *SEARCH.values())):
        (work := tmp_path / str(number)).mkdir()
        first = str(case.build(good, work)[0])
        waiting.discard((case.command, first if first in names[case.command] else ""))
        if not waiting:
            return
    pytest.fail(f"no hostile input for {sorted(waiting)}")
