"""A module that a user names is looked for, without importing it or its packages."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from hnas.deployment.places import require_model

KNOWN = ("hooked", "hooked.below", "hooked.below.nets")  # to a finder of this test's own


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages whose import fails, on the import path: one with an __init__.py in each folder, and one without."""
    for name, files in {
        "regular": ("__init__.py", "below/__init__.py", "below/nets.py"),
        "namespace": ("below/nets.py",),
    }.items():
        for file in files:
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text("raise AssertionError(__name__)")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(
    "name", ["regular", "regular.below.nets", "namespace.below.nets", "os.path", "xml.dom.minidom", "sys", __name__]
)
def test_a_module_that_is_there_is_found(nets: None, name: str) -> None:
    before = {*sys.modules}
    require_model(f"{name}:x")
    assert {*sys.modules} == before


@pytest.mark.parametrize(
    "name",
    [
        "nowhere",
        "regular.nets",
        "sys.path",
        "regular.below.nets.x",
        "namespace.nets",
        "json.nosuch",
        ".json",
        "json..x",
    ],
)
def test_a_module_that_is_not_there_is_one_line(nets: None, name: str) -> None:
    with pytest.raises(ValueError, match=r"no module '.*' in the current directory or the environment"):
        require_model(f"{name}:x")


def test_a_module_behind_an_import_hook_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The finder knows its modules by full names, as that of an editable installation does."""

    asked: list[tuple[str, Sequence[str] | None]] = []

    class Finder:
        @staticmethod
        def find_spec(name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
            asked.append((name, path))
            return ModuleSpec(name, None, is_package=name != "hooked.below.nets") if name in KNOWN else None

    monkeypatch.setattr(sys, "meta_path", [Finder, object(), *sys.meta_path])
    before = {*sys.modules}
    require_model("hooked.below.nets:x")
    assert asked == [("hooked", None), ("hooked.below", []), ("hooked.below.nets", [])]
    with pytest.raises(ValueError, match=r"no module 'hooked\.above'"):
        require_model("hooked.above:x")
    assert {*sys.modules} == before
