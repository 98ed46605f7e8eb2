"""The files that take longest start first, so that the processes of a run finish together."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests import conftest

ROOT = Path(__file__).resolve().parent.parent


def item(nodeid: str, slow: bool = False) -> Any:
    return SimpleNamespace(nodeid=nodeid, get_closest_marker=lambda _: slow or None)


def test_long_files_come_first_and_each_file_stays_together() -> None:
    many, few = [f"tests/a.py::test[{n}]" for n in range(20)], ["tests/b.py::one", "tests/b.py::two"]
    items = [*map(item, many), *(item(each, slow=True) for each in few), item("tests/test_readme.py::test")]
    conftest.pytest_collection_modifyitems(items)
    assert [each.nodeid for each in items] == ["tests/test_readme.py::test", *few, *many]


def test_the_files_that_are_named_exist_and_xdist_keeps_the_order() -> None:
    assert all((ROOT / name).is_file() for name in conftest._LONG)
    assert "--no-loadscope-reorder" in (ROOT / "Makefile").read_text()
