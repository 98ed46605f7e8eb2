"""The notebooks in docs: their cells run in order as a script, and they are kept with what they print and plot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hnas.export.bundle.bundle import read_bundle

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    found = json.loads(path.read_text("utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


def source(path: Path) -> str:
    return "\n\n".join("".join(cell["source"]) for cell in cells(path, "code")) + "\n"


def test_there_is_a_notebook() -> None:
    assert [path.name for path in NOTEBOOKS] == ["first_bundle.ipynb"]
    assert all(f"({path.name})" in (ROOT / "docs" / "README.md").read_text("utf-8") for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_kept_with_its_output_and_without_errors(path: Path) -> None:
    compile(source(path), path.name, "exec")
    outputs = [output for cell in cells(path, "code") for output in cell["outputs"]]
    assert all(output["output_type"] != "error" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_the_cells_of_a_notebook_run_in_order(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("onnxruntime")
    end = "\nimport matplotlib.pyplot as plt\nassert len(plt.get_fignums()) == 1\n"
    (tmp_path / "cells.py").write_text("import matplotlib.pyplot\n" + source(path) + end, "utf-8")
    own = {"MPLBACKEND": "Agg", "XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "cells.py"],
        cwd=tmp_path,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "accuracy: holds" in done.stdout
    assert read_bundle(tmp_path / "runs" / "shapes" / "bundle").labels == ("bar", "dot", "ring")
