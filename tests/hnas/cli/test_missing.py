"""A missing package gives one line with the command that installs it, and nothing is written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.hnas import photos

ROOT = Path(__file__).resolve().parents[3]

BLOCK = """
import importlib.util, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in {blocked!r} else found(name, package)
"""


def without(blocked: Sequence[str], *arguments: str, main: str = "deploy_main") -> subprocess.CompletedProcess[str]:
    """A command where these packages cannot be imported, by its own process or by those that it starts."""
    code = f"import sys\nfrom hnas.cli import {main}\nsys.exit({main}(sys.argv[1:]))"
    with TemporaryDirectory() as folder:
        Path(folder, "sitecustomize.py").write_text(BLOCK.format(blocked=tuple(blocked)))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([folder, str(ROOT)])}
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("blocked", "says"),
    [
        (("torch",), "torch is not installed; pip install 'hnas[search,onnxruntime-convert]'"),
        (("pymoo",), "pymoo is not installed; pip install 'hnas[search,onnxruntime-convert]'"),
        (("scipy",), "scipy is not installed; pip install 'hnas[search,onnxruntime-convert]'"),
        (("safetensors",), "safetensors is not installed; pip install 'hnas[search,onnxruntime-convert]'"),
        (("onnxruntime",), "onnxruntime is not installed; pip install 'hnas[search,onnxruntime-convert]'"),
        (("onnxscript",), "onnxscript is not installed; pip install 'hnas[search,onnxruntime-convert]'"),
    ],
)
def test_a_missing_package_is_named_with_its_remedy(deploy, quick, blocked: tuple[str, ...], says: str):
    found = without(blocked, *deploy)
    assert (found.returncode, found.stdout) == (3, ""), found.stderr
    assert says in found.stderr
    assert found.stderr.count("\n") == 1
    assert photos.tree(quick) == set()


@pytest.mark.slow
def test_training_without_torch(trained, quick):
    options = ("--recipe", "images", "--data", str(trained / "photos"), "--out", "net")
    found = without(["torch"], *options, main="train_main")
    assert found.returncode == 3
    assert found.stderr == (
        "hnas-train: torch is not installed; pip install 'hnas[search]' (hnas-deploy doctor says more)\n"
    )
    assert photos.tree(quick) == set()
