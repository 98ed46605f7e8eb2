"""A plug-in is added as one file: the examples of docs/extending.md, in a copy of the tree, used by the commands.

No other file of the copy is edited. Each kind of plug-in that is found by its name is in the page.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "extending.md"
KINDS = {
    "device profile": "hw_profiles/dense-cpu.toml",
    "recipe": "hnas/recipes/brightness.toml",
    "operation": "hnas/ops/gatedconv.py",
    "space": "hnas/spaces/two_slots.py",
    "task": "hnas/tasks/brightness.py",
    "strategy": "hnas/strategies/some_random.py",
    "evidence": "hnas/shrinking/evidence/small_first.py",
    "cost": "hnas/cost/weights_kb.py",
    "transport": "export/remote/transports/niced.py",
    "runtime of a backend": "export/device/runtimes/dense.py",
    "backend": "export/backends/dense/convert.py",
}

pytestmark = pytest.mark.slow


def files() -> dict[str, str]:
    """Return the files of the page by their paths: the first line of a block is a comment with the path."""
    found = re.findall(r"^```\w+\n# (\S+/\S+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return dict(found)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the packages with every file of the page in it, and a folder of images beside it."""
    folder = tmp_path_factory.mktemp("plugins")
    for name in ("src", "hnas", "export", "hw_profiles", "benchmarks", "tests"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for path, text in files().items():
        assert not (folder / path).exists(), f"{path} is in the tree already"
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    (folder / "export/backends/dense/__init__.py").write_text('"""numpy."""\n')
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(40):
            pixels = rng.normal(rng.choice((60, 200)), 10, (8, 8)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{number}.png")
    return folder


def run(tree: Path, *words: str) -> str:
    """Run a command with the packages of the copy. Return its standard output."""
    code = "import sys; from hnas.cli import deploy_main, train_main; sys.exit(globals()[sys.argv.pop(1)]())"
    main = {"hnas-deploy": ["-c", code, "deploy_main"], "hnas-train": ["-c", code, "train_main"], "python": []}
    done = subprocess.run(
        [sys.executable, *main[words[0]], *words[1:]],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree / "src"), "XDG_CACHE_HOME": str(tree / ".cache")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{shlex.join(words)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_page_has_a_file_of_each_kind() -> None:
    assert set(files()) == set(KINDS.values())


def test_a_recipe_of_toys_trains(tree: Path) -> None:
    """Recipe, space, task, strategy and evidence; the recipe's space offers the toy operation."""
    recipe = (tree / "hnas/recipes/brightness.toml").read_text()
    gated = recipe.replace("width = 8", 'width = 8\ntypes = ["separable", "gatedconv"]')
    (tree / "gated.toml").write_text(gated)
    for name in ("brightness", "gated.toml"):
        words = ["--recipe", name, "--data", "photos", "--out", f"runs/{name}", "--threads", "1", "--json"]
        record = json.loads(run(tree, "hnas-train", *words))
        assert record["task"]["name"] == "brightness"
        assert record["task"]["classes"] == ["level 0", "level 1"]
        assert [edit["kind"] for edit in record["edits"]] == ["drop"]
        assert record["edits"][0]["option"] == ("preconv" if name == "brightness" else "gatedconv")


def test_a_toy_backend_is_listed_and_deployed_to_through_a_toy_transport(tree: Path) -> None:
    """Device profile, backend, its runtime and transport."""
    assert "dense-cpu" in {row["target"] for row in json.loads(run(tree, "hnas-deploy", "targets", "--json"))}
    rows = {row["backend"]: row for row in json.loads(run(tree, "hnas-deploy", "doctor", "--json"))}
    assert rows["dense"]["runs"]
    (tree / "net.py").write_text(
        "import torch\n"
        "from torch import nn\n\n\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).eval()\n"
    )
    words = ["export", "net:make", "--target", "dense-cpu", "--input", "1x64", "--json"]
    for name, host in (("here", []), ("there", ["--host", "niced://5"])):
        found = json.loads(run(tree, "hnas-deploy", *words, "--out", f"runs/{name}", *host))
        assert found["target"] == "dense-cpu"
        assert (tree / "runs" / name / "bundle" / "manifest.json").is_file()
    assert "dense" in run(tree, "hnas-deploy", "show", "runs/here/bundle")


def test_a_toy_cost_prices_a_search(tree: Path) -> None:
    code = (
        "from hnas import Study, Supernet, spaces, tasks\n"
        "from hnas.cost.weights_kb import weights_kb\n"
        "from hnas.strategies.evolution import EvolutionOptions, search\n"
        "from pathlib import Path\n"
        "supernet = Supernet(spaces.load('two_slots')(classes=2))\n"
        "task = tasks.load('brightness').open_task(Path('photos'))\n"
        "study = Study(supernet, task, costs={'weights_kb': weights_kb(supernet.skeleton)})\n"
        "options = EvolutionOptions(cost='weights_kb', evaluations=3)\n"
        "found = list(search(study, supernet.space, options))\n"
        "assert all(candidate.metrics['weights_kb'] > 0 for candidate in found)\n"
    )
    run(tree, "python", "-c", code)


def test_the_laws_find_the_toys(tree: Path) -> None:
    names = "gatedconv or two_slots or some_random or brightness"
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/hnas/test_contracts.py", "-k", names]
    assert re.search(r"\d\d passed", run(tree, "python", *words))
