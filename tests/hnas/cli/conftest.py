"""Run a command in this process, and hold a refusal to one line and an unchanged folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from hnas.cli import deploy_main
from tests.hnas import photos


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process: (exit code, standard output, standard error)."""

    def run(*arguments: str, main: Callable[[Sequence[str]], int] = deploy_main) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            code = main(arguments)
        except SystemExit as left:
            code = int(left.code or 0)
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def refused(call, quick: Path, trained: Path) -> Callable[..., str]:
    """Return the one line of a command that fails and leaves the current folder unchanged."""

    def run(*arguments: str, code: int = 2, main: Callable[[Sequence[str]], int] = deploy_main) -> str:
        before = photos.tree(quick)
        found, out, err = call(*arguments, main=main)
        assert (found, out) == (code, ""), err
        err = re.sub(r"^\[.*\]\n", "", err, flags=re.MULTILINE)  # the stages before the failure
        assert err.endswith("\n")
        assert err.count("\n") == 1, err
        assert "Traceback" not in err
        assert photos.tree(quick) == before
        return err.strip()

    return run
