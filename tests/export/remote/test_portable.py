"""The program that is sent to a device is complete, and runs on Python 3.8."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hnas.export import device
from hnas.export.remote import portable
from tests.export.fake_worker import fake_artifact
from tests.export.old_python import old_python


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "device.pyz"
    path.write_bytes(portable.build_zip())
    return path


def test_the_program_needs_nothing_of_ours_but_itself(program: Path, tmp_path: Path) -> None:
    modules = [name[:-3].replace("/", ".") for name in zipfile.ZipFile(program).namelist()[1:]]
    assert "hnas.export.device.runtimes.onnxruntime" in modules
    code = f"""
import importlib, sys
sys.path[:0] = [{str(program)!r}]
for name in {modules}:
    found = importlib.import_module(name.replace(".__init__", ""))
    assert found.__file__.startswith({str(program)!r}), found.__file__
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    portable.build_zip.cache_clear()
    assert portable.build_zip() == program.read_bytes()


def test_every_module_of_it_runs_on_an_old_python(program: Path, tmp_path: Path) -> None:
    """Import every module with the standard library alone and a stand-in for numpy."""
    old = old_python()
    if old is None:
        pytest.skip("there is no Python 3.8 or 3.9 on PATH or in pyenv")
    code = """
import importlib, sys, types
from zipfile import ZipFile
numpy = sys.modules["numpy"] = types.ModuleType("numpy")
numpy.ndarray = object
numpy.dtype = object
names = [n[:-3].replace("/", ".") for n in ZipFile(sys.argv[1]).namelist() if n != "__main__.py"]
sys.path.insert(0, sys.argv[1])
for name in names:
    importlib.import_module(name.replace(".__init__", ""))
from pathlib import Path
from hnas.export.device.artifact import Artifact
print(Artifact.read(Path(sys.argv[2])).digest)
from hnas.export.device.machine import Machine
print(Machine.here().processor)
from hnas.export.device.records import decode, encode
assert decode(Machine, encode(Machine.here()), "here") == Machine.here()
"""
    artifact = fake_artifact(tmp_path / "a")
    done = subprocess.run(
        [old, "-W", "error", "-c", code, str(program), str(artifact.path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == artifact.digest


def test_it_imports_nothing_else_of_hnas_not_even_for_types() -> None:
    for path in sorted(Path(device.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            named = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                named = [f"{node.module}.{each.name}" for each in node.names]
            wrong = [name for name in named if re.match(r"hnas\b(?!\.export\.device\b)", name)]
            assert not wrong, (path.name, wrong)


YOUNGER = {"removeprefix", "removesuffix", "is_relative_to", "with_stem", "readlink", "lcm", "nextafter", "pairwise"}


def test_nothing_of_it_uses_what_python_3_8_lacks() -> None:
    """Look for what fails only when it runs: younger methods, and generics of builtin types that are called."""
    for path in sorted(Path(device.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.Attribute) and node.attr in YOUNGER), (path.name, node.attr)
            called = node.func if isinstance(node, ast.Call) else None
            generic = isinstance(called, ast.Subscript) and isinstance(called.value, ast.Name)
            assert not generic, f"{path.name}:{node.lineno} calls a generic type"
            if isinstance(node, ast.ImportFrom) and node.module == "functools":
                assert "cache" not in {each.name for each in node.names}, path.name
