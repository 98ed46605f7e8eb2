"""Every command of the benchmarks answers ``--help`` under the name that the docs use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = (
    "hnas.benchmarks",
    "hnas.benchmarks.peers",
    "hnas.benchmarks.fuzz",
    "hnas.benchmarks.papers",
    "hnas.benchmarks.papers.cells_table",
    "hnas.benchmarks.papers.digits_table",
    "hnas.benchmarks.papers.rates",
    "hnas.benchmarks.costs.supernet",
    "hnas.benchmarks.costs.recurrent",
    "hnas.benchmarks.costs.overhead",
    "hnas.benchmarks.costs.waiting",
    "hnas.benchmarks.costs.arm64",
)


def documented() -> str:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    return "\n".join(page.read_text("utf-8") for page in pages)


def test_help_names_the_command() -> None:
    environment = {**os.environ, "COLUMNS": "120"}
    started = {
        name: subprocess.Popen(
            [sys.executable, "-m", name, "--help"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for name in COMMANDS
    }
    for name, process in started.items():
        out, err = process.communicate(timeout=300)
        assert (process.returncode, err) == (0, ""), name
        usage = "hnas-bench" if name == "hnas.benchmarks" else f"python -m {name}"
        assert out.startswith(f"usage: {usage} "), name


@pytest.mark.parametrize("name", COMMANDS[1:])
def test_the_docs_name_the_command(name: str) -> None:
    assert f"python -m {name}" in documented()
