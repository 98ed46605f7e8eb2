"""The Makefile shows what pip does: the first `make deploy` downloads for minutes."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_pip_shows_its_progress() -> None:
    lines = [line for line in (ROOT / "Makefile").read_text("utf-8").splitlines() if "pip install" in line]
    assert lines
    assert not [line for line in lines if "--quiet" in line or "-q " in line]
