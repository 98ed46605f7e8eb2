"""The shape of the tree: who imports whom, what loads without which dependency, and how large things may grow.

Everything is discovered: a new file is under these laws from its first day.
"""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from hnas import hw_profiles
from tests import house
from tests.conftest import LIMIT_S

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("hnas", "export", "hw_profiles", "benchmarks")
LOCKS = {"sign.lock": ("sign",), "extras.lock": ("mlflow", "loadgen")}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# Runtimes and converters: every module of the packages imports without them, and asks for them only when used.
RUNTIMES = (
    *("onnx", "onnxruntime", "onnxscript", "openvino", "nncf", "tensorrt", "ai_edge_litert", "ai_edge_quantizer"),
    *("litert_torch", "jax", "transformers", "matplotlib", "kornia"),
)
# What only the search and the capture of a network need: absent on a device.
SEARCH = ("torch", "pymoo", "safetensors", "scipy")
# The rooms whose modules import on the base alone; every module of another room may need SEARCH.
TORCH_FREE = (
    *(
        "hnas.export.device.*",
        "hnas.export.remote.*",
        "hnas.export.proof.*",
        "hnas.export.onnx.[!f]*",
        "hnas.export.onnx.file",
    ),
    *(
        "hnas.export.bundle.*",
        "hnas.export.zoo.*",
        "hnas.pages.*",
        "hnas.export.backends.*.convert",
        "hnas.export.backends.*.inspector",
    ),
    *("hnas.hw_profiles", "hnas.data.*", "hnas.cli.*", "hnas.benchmarks.gate.*", "hnas.benchmarks.cli"),
    *("hnas.benchmarks.suites", "hnas.benchmarks.printing"),
    *("hnas.deployment", "hnas.deployment.options", "hnas.deployment.bounds", "hnas.deployment.plan"),
    *("hnas.deployment.classifier", "hnas.deployment.inventory", "hnas.deployment.plotting", "hnas.__main__"),
    *("hnas", "hnas.export", "hnas.files", "hnas.journal", "hnas.units", "hnas.report", "hnas.tasks"),
)

SKIPPED_FOLDERS = {".git", ".venv", ".hypothesis", "build", "dist", "runs", "__pycache__"}


def files(*suffixes: str) -> Iterator[Path]:
    """Every file of the tree with one of these suffixes (all of them without), caches and environments left out."""
    for folder, folders, names in os.walk(ROOT):
        folders[:] = sorted(
            name
            for name in folders
            if name not in SKIPPED_FOLDERS and not name.endswith(("_cache", ".egg-info")) and name[:6] != ".venv-"
        )
        for name in sorted(names):
            if not suffixes or name.endswith(suffixes):
                yield Path(folder, name)


def sources() -> list[Path]:
    return [path for path in files(".py") if path.relative_to(ROOT).parts[0] in PACKAGES]


def module_name(path: Path) -> str:
    """The name that a source file is imported by: the folders at the top are sub-packages of hnas."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("hnas", *parts) if parts[0] != "hnas" else parts).removesuffix(".__init__")


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def failing_imports(blocked: tuple[str, ...]) -> dict[str, str]:
    """Module name -> error of every module that does not import, in a fresh process, with ``blocked`` out of reach."""
    code = """
import importlib, json, sys
names, blocked = json.loads(sys.stdin.read())
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked by the test)", name=name)
sys.meta_path.insert(0, Absent())
failed = {}
for name in names:
    try:
        importlib.import_module(name)
    except Exception as error:
        failed[name] = f"{type(error).__name__}: {error}"
print(json.dumps(failed))
"""
    names = [name for name in map(module_name, sources()) if not name.endswith("__main__")]
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([names, blocked]),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    failed: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return failed


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


# --- who imports whom -------------------------------------------------------------------------------------------------


def test_the_import_contracts_hold() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_modules_import_each_other_in_a_circle_not_even_by_name() -> None:
    assert not house.circle()


def test_a_circle_by_name_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    dynamic = {**house._dynamic_imports(), "hnas.space": {"hnas.study"}}
    monkeypatch.setattr(house, "_dynamic_imports", lambda: dynamic)
    assert {"hnas.space", "hnas.study"} <= set(house.circle())


def test_the_table_of_rooms_is_that_of_today() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    assert page == house.renewed(page), "run python -m tests.house --write"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("importer", "line", "allowed"),
    [
        ("hnas/deployment/plan.py", "import hnas.export.device.artifact", True),
        ("hnas/cli/commands.py", "import hnas.export.device.artifact", True),
        ("hnas/cli/ending.py", "import hnas.hw_profiles", True),
        ("benchmarks/gate/check.py", "import hnas.cli", True),
        ("hnas/cli/ending.py", "import hnas.study", True),
        ("hnas/study.py", "import hnas.export.device.artifact", False),
        ("hnas/space.py", "import hnas.study", False),
        ("hnas/study.py", "import hnas.benchmarks", False),
        ("hnas/study.py", "import tests", False),
        ("export/device/artifact.py", "import hnas.space", False),
        ("export/device/artifact.py", "import hnas.export.graph.program", False),
        ("export/graph/fusion.py", "def f():\n    import hnas.export.int8.mixed", False),
        ("export/proof/verification.py", "import hnas.export.compiling.pipeline", False),
        ("export/backends/openvino/convert.py", "import hnas.export.backends.tflite.convert", False),
        ("export/device/runtimes/openvino.py", "import hnas.export.device.runtimes.tflite", False),
        ("hw_profiles/__init__.py", "import hnas.export", False),
        ("hw_profiles/__init__.py", "def f():\n    import numpy", False),
        ("export/newroom/one.py", "", False),
        ("hnas/newroom/one.py", "", False),
    ],
)
def test_the_contracts_bite(tmp_path: Path, importer: str, line: str, allowed: bool) -> None:
    """Run the contracts on a tree of empty modules with one import in it. A new room must be put into the order."""
    for name in [*map(relative, sources()), "tests/__init__.py", importer, f"{Path(importer).parent}/__init__.py"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for name in PACKAGES[1:]:
        (tmp_path / "hnas" / name).symlink_to(f"../{name}")
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    (tmp_path / importer).write_text(line)
    done = lint_imports(tmp_path)
    assert (done.returncode == 0) is allowed, done.stdout + done.stderr


# --- what loads without what ------------------------------------------------------------------------------------------


def test_the_base_imports_without_torch_and_without_any_runtime() -> None:
    failed = failing_imports(RUNTIMES + SEARCH)
    wrong = {name: error for name, error in failed.items() if any(fnmatchcase(name, room) for room in TORCH_FREE)}
    assert not wrong, "\n".join(f"{name}: {error}" for name, error in wrong.items())


def test_every_module_imports_without_the_runtimes_and_converters() -> None:
    failed = failing_imports(RUNTIMES)
    assert not failed, "\n".join(f"{name}: {error}" for name, error in failed.items())


# --- how large, how documented ----------------------------------------------------------------------------------------


def test_every_test_file_stays_under_400_lines() -> None:
    lengths = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in files(".py")}
    assert not {name: length for name, length in lengths.items() if length >= 400}


def test_every_file_function_and_name_keeps_the_limits() -> None:
    assert not list(house.offences()), "python -m tests.house lists them"


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("def f(a, b, c, d, e, f, g, h, i):\n    return a\n", "f has 9 parameters"),
        ("def f(x):\n    return " + " or ".join(f"x == {i}" for i in range(15)) + "\n", "f has complexity 15"),
        ("class A:\n    def f(self, x):\n        return " + " if x else ".join("0" * 16) + "\n", "f has complexity 16"),
        ("def f():\n" + "    print()\n" * 60, "f has 61 lines"),
        ("x = 1\n" * 351, "has 351 lines"),
        (f"Only{'Here'} = 1\n", f"nobody else names Only{'Here'}"),
        ("class Arch:\n    pass\n", "Arch means several things"),
        ("class Tensor:\n    pass\n", "Tensor hides a well-known class"),
    ],
)
def test_the_limits_bite(monkeypatch: pytest.MonkeyPatch, source: str, complaint: str) -> None:
    planted = {**house.sources(), ROOT / "hnas" / "planted.py": source}
    monkeypatch.setattr(house, "sources", lambda: planted)
    assert any(complaint in line and "planted" in line for line in house.offences()), list(house.offences())


def test_every_module_and_every_public_name_has_a_docstring() -> None:
    bare = []
    for path in sources():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if tree.body and not ast.get_docstring(tree):
            bare.append(relative(path))
        for node in tree.body:
            if (
                isinstance(node, ast.FunctionDef | ast.ClassDef)
                and not node.name.startswith("_")
                and not ast.get_docstring(node)
            ):
                bare.append(f"{relative(path)}:{node.lineno} {node.name}")
    assert not bare, "\n".join(bare)


# --- what the tree must not say ---------------------------------------------------------------------------------------

# Package registries are the user's own choice, and paths of one machine hold on one machine.
HOSTS = re.compile(
    r"pypi\.(org|nvidia)|pythonhosted|download\.pytorch|npmjs|crates\.io|debian\.org/|ghcr\.io", re.IGNORECASE
)
MACHINE_PATHS = re.compile(r"""(?:^|[\s"'`(=:])(/(?:root|work|mnt|Users|home/(?!hnas\b))/?[\w.-]*|\.\./shared\b)""")


def test_nothing_names_a_registry_host_or_a_path_of_one_machine() -> None:
    found = []
    for path in files():
        if path == Path(__file__).resolve():
            continue
        data = path.read_bytes()
        if b"\0" in data[:4096]:
            continue
        for number, line in enumerate(data.decode("utf-8", errors="replace").splitlines(), start=1):
            found += [
                f"{relative(path)}:{number} {match.group(0).strip()}"
                for law in (HOSTS, MACHINE_PATHS)
                if (match := law.search(line))
            ]
    assert not found, "\n".join(found)


# --- what the package says of itself ----------------------------------------------------------------------------------


def test_every_command_leads_to_a_function_that_is_there() -> None:
    for command, target in PROJECT["project"]["scripts"].items():
        module, function = target.split(":")
        stem = ROOT / module.replace(".", "/")
        path = stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")
        assert path.is_file(), f"{command}: {module} is missing"
        assert re.search(rf"^def {function}\(", path.read_text(), re.MULTILINE), f"{command}: no {function} in {module}"


def test_every_backend_and_every_device_has_its_extras() -> None:
    extras = set(PROJECT["project"]["optional-dependencies"])
    for device in map(hw_profiles.load, hw_profiles.names()):
        # The Makefile installs these for `make deploy TARGET=...`.
        assert {device.backend, f"{device.backend}-convert"} <= extras
    from hnas.export import backends

    for name in backends.names():
        assert set(backends.load(name).requires) <= extras, name


def test_the_constraints_pin_every_dependency_within_its_range() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {name.lower().replace("_", "-"): version for name, version in pinned.items()}
    assert not [line for line in pinned.values() if "+" in line], "a local version is not to be had everywhere"
    extras = PROJECT["project"]["optional-dependencies"]
    apart = {name for names in LOCKS.values() for name in names}
    groups = (PROJECT["project"]["dependencies"], *(each for name, each in extras.items() if name not in apart))
    wanted = [Requirement(line) for group in groups for line in group]
    for requirement in wanted:
        name = requirement.name.lower().replace("_", "-")
        assert name == "hnas" or requirement.specifier.contains(pins[name]), f"{requirement}: {pins.get(name)}"
    assert pins["torch"] == "2.13.0"


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_of_extras_fits_them_and_has_hashes(lock: str) -> None:
    text = (ROOT / lock).read_text()
    found = re.findall(r"^([\w.-]+)==(\S+) .*\\\n((?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text, re.MULTILINE)
    pins, extras = {name: version for name, version, _ in found}, PROJECT["project"]["optional-dependencies"]
    assert len(pins) == len(re.findall(r"^[^#\n]+==\d", text, re.MULTILINE)) > 20
    for requirement in (Requirement(line) for extra in LOCKS[lock] for line in extras[extra]):
        assert requirement.specifier.contains(pins[requirement.name.lower()]), requirement


def test_the_lock_has_every_pin_but_torch_with_the_hashes_of_its_files() -> None:
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    text = (ROOT / "requirements.lock").read_text()
    form = r"^([^#\s]+==\S+)( ; platform_machine == 'x86_64')? \\\n((?: +--hash=.*\n)+)"
    locked = re.findall(form, text, re.MULTILINE)
    assert [pin for pin, _, _ in locked] == [line for line in pins if not line.startswith("torch==")]
    extra = map(Requirement, PROJECT["project"]["optional-dependencies"]["tensorrt-rtx"])
    only_x86 = {each.name for each in extra if each.marker is not None}
    assert {pin.partition("==")[0] for pin, marker, _ in locked if marker} == only_x86, "other machines cannot install"
    for _, _, hashes in locked:
        assert re.fullmatch(r"(?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+", hashes)
