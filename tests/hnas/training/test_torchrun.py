"""``torchrun -m hnas.cli.train`` as a user types it: two processes write the supernet that one process writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hnas.files import read_json, read_tensors
from hnas.tasks import stream
from tests.conftest import need
from tests.hnas.imagenet import write_folder

RECIPE = """
[space]
name = "hybrid_vision"
channels = 3
resolutions = [12]
stem = 8
widths = [[8], [16]]
depths = [[1, 2], [1]]
strides = [2, 2]
head = 16
types = ["identity", "mbconv", "fusedconv"]
kernels = [3]
expansions = [2]
activations = ["silu"]  # smooth: with ReLU one rounding error may flip a unit, and the weights differ by 1e-3

[data]
reader = "folder"
size = 12
channels = 3
workers = 1

[train]
strategy = "sandwich"
epochs = 1
batch = 8
rate = 0.05
distil = 0.5
"""


@pytest.mark.slow
def test_two_processes_under_torchrun_leave_what_one_leaves(tmp_path: Path) -> None:
    need("kornia", None if stream.find_spec("kornia") else "kornia is not installed")
    data = write_folder(tmp_path / "images")
    (tmp_path / "small.toml").write_text(RECIPE)
    both = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, launcher in (("one", []), ("two", both)):
        said = subprocess.run(
            [sys.executable, *launcher, "-m", "hnas.cli.train", "--recipe", "small.toml"]
            + ["--data", str(data), "--out", name, "--threads", "1", "--json"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert said.returncode == 0, said.stderr
    one, other = (read_tensors(tmp_path / name / "supernet.safetensors")[0] for name in ("one", "two"))
    assert one.keys() == other.keys()
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-5
    records = [read_json(tmp_path / name / "supernet.json") for name in ("one", "two")]
    assert records[0]["steps"] == records[1]["steps"] > 2
