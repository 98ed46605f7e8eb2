"""What a device or a CI job installs: the base and one runtime, small, and without torch."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import LIMIT_S

ROOT = Path(__file__).resolve().parent.parent
LIMIT_MB = 300

pytestmark = pytest.mark.slow


def run(*command: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run ``command`` in ``folder``, away from the tree, so that only what is installed can be imported."""
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
    return subprocess.run(
        [str(part) for part in command],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new virtual environment with the wheel of a copy of the tree and the onnxruntime extra, pinned."""
    folder = tmp_path_factory.mktemp("bare")
    venv, source, pins = folder / "venv", folder / "hnas", ROOT / "constraints.txt"
    assert run(sys.executable, "-m", "venv", venv, folder=folder).returncode == 0
    python = venv / "bin" / "python"
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir", "-c", pins)
    reached = run(*pip, "--no-deps", "mdurl", folder=folder)
    if reached.returncode:
        pytest.skip(f"pip reaches no package index: {(reached.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for name in ("src", "hnas", "export", "hw_profiles", "benchmarks"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    done = run(*pip, f"{source}[onnxruntime]", folder=folder)
    assert done.returncode == 0, done.stderr
    return venv


def test_the_base_and_one_runtime_stay_under_the_limit(environment: Path) -> None:
    size = sum(path.lstat().st_size for path in environment.rglob("*") if not path.is_symlink())
    assert size / 1e6 < LIMIT_MB


def test_it_imports_without_torch_and_has_every_data_file(environment: Path) -> None:
    code = (
        "import importlib.util, hnas.benchmarks.cli\n"
        "from hnas import export, hw_profiles\n"
        "assert importlib.util.find_spec('torch') is None\n"
        "assert hw_profiles.load('jetson').backend == 'tensorrt'\n"
        "from importlib.resources import files\n"
        "folders = ('', 'export', 'hw_profiles', 'benchmarks')\n"
        "assert all((files('hnas') / path / 'py.typed').is_file() for path in folders)\n"
        "from hnas.export import backends\n"
        "assert backends.load('onnxruntime').missing() is None\n"
        "assert 'hnas[openvino]' in backends.load('openvino').missing()\n"
    )
    done = run(environment / "bin" / "python", "-W", "error", "-c", code, folder=environment.parent)
    assert done.returncode == 0, done.stderr


def test_every_packaged_data_file_arrives(environment: Path) -> None:
    """TOML, assets and typing markers are package data; a forgotten pattern shows here and nowhere else."""
    (installed,) = environment.glob("lib/python*/site-packages")
    folders = {"hnas": "hnas", **{name: f"hnas/{name}" for name in ("export", "hw_profiles", "benchmarks")}}
    data = [
        Path(installed_as, path.relative_to(ROOT / folder))
        for folder, installed_as in folders.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    assert len(data) > 300
    assert not [str(path) for path in data if not (installed / path).is_file()]


def test_one_name_is_installed(environment: Path) -> None:
    (installed,) = environment.glob("lib/python*/site-packages")
    assert not [name for name in ("export", "hw_profiles", "benchmarks", "tests", "src") if (installed / name).exists()]


OWN_NAMES = """
import benchmarks, export, tests, hw_profiles  # the user's own
assert export.MINE and benchmarks.MINE and tests.MINE and hw_profiles.MINE
from hnas import export as ours
from hnas.export import backends
from hnas.export.remote.worker import describe_machine
from hnas.export.remote.transports import local
print(sorted(backends.names()), describe_machine("onnxruntime", local)[1])
"""


@pytest.mark.parametrize("editable", [False, True])
def test_a_user_may_have_an_export_of_their_own(environment: Path, tmp_path: Path, editable: bool) -> None:
    """A script beside ``export.py``, ``benchmarks.py`` and ``tests/`` reaches ours, and so do the workers it starts."""
    for name in ("export.py", "benchmarks.py", "hw_profiles.py", "tests/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("MINE = True\n")
    (tmp_path / "script.py").write_text(OWN_NAMES)
    python = linked(environment, tmp_path / "venv") if editable else environment / "bin" / "python"
    done = run(python, "script.py", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "onnxruntime" in done.stdout


@pytest.mark.parametrize("editable", [False, True])
def test_python_in_the_parent_of_the_clone_finds_the_package(environment: Path, tmp_path: Path, editable: bool) -> None:
    """The clone is called hnas as well; the folder must not be taken for the package."""
    clone = environment.parent / "hnas"
    python = linked(environment, tmp_path / "venv") if editable else environment / "bin" / "python"
    assert clone.is_dir()
    code = "import hnas, hnas.hw_profiles; assert hnas.__file__, hnas.__path__; hnas.hw_profiles.load('jetson')"
    done = run(python, "-c", code, folder=clone.parent)
    assert done.returncode == 0, done.stderr


def linked(environment: Path, venv: Path) -> Path:
    """A second environment with the copied tree as an editable install, and the first one's other packages."""
    (packages,) = environment.glob("lib/python*/site-packages")
    assert run(sys.executable, "-m", "venv", venv, folder=environment.parent).returncode == 0
    python = venv / "bin" / "python"
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "-e")
    done = run(*pip, environment.parent / "hnas", folder=environment.parent)
    assert done.returncode == 0, done.stderr
    (own,) = venv.glob("lib/python*/site-packages")
    for name in ("numpy", "numpy.libs", "onnxruntime", *(path.name for path in packages.glob("*.dist-info"))):
        if (packages / name).exists() and not name.startswith("hnas"):
            (own / name).exists() or (own / name).symlink_to(packages / name)
    return python


@pytest.mark.parametrize("arguments", [("hnas-bench", "--help"), ("hnas-deploy", "--help"), ("hnas-deploy", "targets")])
def test_the_commands_answer(environment: Path, arguments: tuple[str, ...]) -> None:
    done = run(environment / "bin" / arguments[0], *arguments[1:], folder=environment.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("command", ["hnas-train", "hnas-deploy"])
def test_what_needs_torch_says_how_to_get_it(environment: Path, command: str) -> None:
    options = {
        "hnas-train": ("--recipe", "fashion", "--data", ".", "--out", "out"),
        "hnas-deploy": ("--target", "onnxruntime-cpu"),
    }
    done = run(environment / "bin" / command, *options[command], folder=environment.parent)
    assert done.returncode == 3
    assert "hnas[search" in done.stderr
    assert "Traceback" not in done.stderr
