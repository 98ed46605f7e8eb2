"""What a device or a CI job installs: the base and one runtime, small, and without torch."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new virtual environment with the wheel of a copy of the tree and the onnxruntime extra, pinned."""
    folder = tmp_path_factory.mktemp("bare")
    venv, source, pins = folder / "venv", folder / "source", ROOT / "constraints.txt"
    assert run(sys.executable, "-m", "venv", venv, folder=folder).returncode == 0
    python = venv / "bin" / "python"
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir", "-c", pins)
    reached = run(*pip, "--no-deps", "mdurl", folder=folder)
    if reached.returncode:
        pytest.skip(f"pip reaches no package index: {(reached.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for name in ("hnas", "export", "hw_profiles", "benchmarks"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    done = run(*pip, f"{source}[onnxruntime]", folder=folder)
    assert done.returncode == 0, done.stderr
    return venv


def test_the_base_and_one_runtime_stay_under_the_limit(environment: Path) -> None:
    size = sum(path.lstat().st_size for path in environment.rglob("*") if not path.is_symlink())
    assert size / 1e6 < LIMIT_MB


def test_it_imports_without_torch_and_has_every_data_file(environment: Path) -> None:
    code = (
        "import importlib.util, export, hnas, benchmarks, benchmarks.cli, hw_profiles\n"
        "assert importlib.util.find_spec('torch') is None\n"
        "assert hw_profiles.load('jetson').backend == 'tensorrt'\n"
        "from importlib.resources import files\n"
        "assert all((files(name) / 'py.typed').is_file() for name in ('hnas', 'export', 'hw_profiles', 'benchmarks'))\n"
        "from export import backends\n"
        "assert backends.load('onnxruntime').missing() is None\n"
        "assert 'hnas[openvino]' in backends.load('openvino').missing()\n"
    )
    done = run(environment / "bin" / "python", "-W", "error", "-c", code, folder=environment.parent)
    assert done.returncode == 0, done.stderr


def test_every_packaged_data_file_arrives(environment: Path) -> None:
    """TOML, assets and typing markers are package data; a forgotten pattern shows here and nowhere else."""
    (installed,) = environment.glob("lib/python*/site-packages")
    packages = ("hnas", "export", "hw_profiles", "benchmarks")
    data = [
        path.relative_to(ROOT)
        for package in packages
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    assert not [str(path) for path in data if not (installed / path).is_file()]
    assert not (installed / "tests").exists()


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
