"""From a user's own photographs to a verified bundle, with the installed commands as a user types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hnas import hw_profiles
from hnas.export.bundle.bundle import read_bundle
from tests.conftest import LIMIT_S
from tests.hnas import photos

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    "hnas-train": "from hnas.cli import train_main as main",
    "hnas-deploy": "from hnas.cli import deploy_main as main",
    "hnas-bench": "from hnas.benchmarks.cli import main",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: photographs and a recipe."""
    folder = tmp_path_factory.mktemp("home")
    photos.write(folder / "photos")
    (folder / "shapes.toml").write_text(photos.RECIPE)
    return folder


def shell(home: Path, line: str, codes: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[str]:
    """Run a command line; its exit code is one of ``codes`` and it never shows a traceback."""
    command, *arguments = line.split()
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys\n{COMMANDS[command]}\nsys.exit(main(sys.argv[1:]))", *arguments],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(home / "cache"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode in codes, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.slow
def test_photographs_become_a_bundle_that_is_checked_and_used(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    trained = shell(home, "hnas-train --recipe shapes.toml --data photos --out trained --threads 1 --json")
    record = json.loads(trained.stdout)
    stages = {line.split()[0] for line in trained.stderr.splitlines()}
    assert stages <= {"timing", "images", "training", "predicted", "baseline", "warning", "epoch"}, trained.stderr
    assert "135 training images are few" in trained.stderr
    assert record["task"]["classes"] == list(photos.CLASSES)
    assert record["accuracy"]["largest"] > 0.8

    options = "--target onnxruntime-cpu --supernet trained --data photos --out run --budget 4evals"
    deployed = shell(home, f"hnas-deploy {options} --json")
    found = json.loads(deployed.stdout)
    assert deployed.stderr == ""
    assert [row["verdict"] for row in found["rows"]].count("kept") == 1
    assert all(row["latency_ms"]["low"] <= row["latency_ms"]["value"] for row in found["rows"])

    bundle = read_bundle(home / "run/bundle")
    assert bundle.labels == photos.CLASSES
    assert bundle.manifest.accuracy is not None
    assert bundle.manifest.accuracy.n == record["images"]["test"]
    assert bundle.manifest.latency.kind == "measured"
    # What the bundle calls its training data is what the supernet knew.
    assert bundle.manifest.data is not None
    assert bundle.manifest.data.digests["test"] == record["task"]["digests"]["test"]

    assert shell(home, "hnas-deploy show run/bundle").stdout.startswith(f"# {bundle.manifest.name}")
    seen = json.loads(shell(home, "hnas-deploy run run/bundle --image photos/dot/001.jpg --json").stdout)
    assert {row["label"] for row in seen} == set(photos.CLASSES)
    assert sum(row["probability"] for row in seen) == pytest.approx(1)

    checked = shell(home, "hnas-bench check run/bundle --data photos --processes 2 --max-time 20s --json", (0, 1, 4))
    assert json.loads(checked.stdout)
    assert json.loads(checked.stdout)["exit_code"] == checked.returncode

    again = shell(home, f"hnas-deploy {options} --json --resume")
    assert json.loads(again.stdout) == found


@pytest.mark.slow
@pytest.mark.parametrize("target", ["openvino-cpu", "jetson"])
def test_other_targets_take_the_same_supernet(home: Path, target: str):
    if not (home / "trained").exists():
        shell(home, "hnas-train --recipe shapes.toml --data photos --out trained --threads 1")
    out = f"run-{target}"
    words = f"hnas-deploy --target {target} --supernet trained --data photos --out {out} --budget 3evals --json"
    found = json.loads(shell(home, words).stdout)
    bundle = read_bundle(home / out / "bundle")
    assert bundle.manifest.target == found["target"] == hw_profiles.load(target).name
    if target == "jetson":  # nothing is timed, so the command that the bundle states leads to the same bytes
        again = shell(home, f"{bundle.manifest.reproduce} --out again --json")
        assert json.loads(again.stdout)["arch"] == found["arch"]
        assert read_bundle(home / "again/bundle").artifact().digest == bundle.artifact().digest
