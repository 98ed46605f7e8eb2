"""The whole command for ``--target cuda``, with a compiled driver and with CUDA's provider computing on the CPU.

The test covers the way of the command. No figure here is a GPU's.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hnas.cli import deploy_main
from hnas.export.bundle.bundle import read_bundle
from hnas.export.device import gpu_providers
from hnas.hw_profiles import at_hand
from tests.export import standin_gpu
from tests.hw_profiles.test_at_hand import A100, DRIVER

pytestmark = [
    pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler for the stand-in of the driver"),
    pytest.mark.slow,
]


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The GPU of this process and of its children."""
    ort = pytest.importorskip("onnxruntime")
    (tmp_path / "driver.c").write_text(DRIVER.format(**A100))
    library = tmp_path / "libcuda.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "driver.c"], check=True)
    (tmp_path / "planted").mkdir()
    standin_gpu.install(tmp_path / "planted")
    for name, value in standin_gpu.replacements(ort).items():
        monkeypatch.setattr(ort, name, value)
    for name, first in (("PYTHONPATH", tmp_path / "planted"), ("LD_LIBRARY_PATH", tmp_path)):
        monkeypatch.setenv(name, os.pathsep.join(filter(None, (str(first), os.environ.get(name)))))
    monkeypatch.setattr(at_hand, "_DRIVER", str(library))
    for cache in (at_hand.gpu_figures, gpu_providers._starts):
        cache.cache_clear()
    yield
    for cache in (at_hand.gpu_figures, gpu_providers._starts):
        cache.cache_clear()


def test_a_net_is_built_verified_and_measured_on_the_gpu_at_hand(
    gpu: None, own_net: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    pytest.importorskip("onnxscript")
    assert deploy_main([*own_net, "--target", "cuda", "--precision", "fp16"]) == 0, capsys.readouterr().err
    said = json.loads(capsys.readouterr().out)
    assert said["target"] == "cuda"
    manifest = read_bundle(tmp_path / "run" / "bundle").manifest
    assert (manifest.target, manifest.backend, manifest.precision) == ("cuda", "tensorrt", "fp16")
    assert manifest.latency.kind == "measured"
    assert manifest.versions["provider"] == standin_gpu.CUDA
    assert manifest.build is not None
    assert manifest.build["engine"] == {"built_by": f"onnxruntime {standin_gpu.CUDA}"}
    assert manifest.speedup is not None
    assert manifest.speedup.kind == "measured"
