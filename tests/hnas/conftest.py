"""A supernet that was trained on photographs, once for all tests that deploy it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hnas.export.compiling.compiler import Compiler, limited_compiler
from tests.benchmarks import bundles
from tests.hnas import photos


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the ``photos`` and the supernet ``trained`` on them; tests must not write into it."""
    import torch

    from hnas import recipes
    from hnas.recipes.run import run_recipe

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    (folder / "shapes.toml").write_text(photos.RECIPE)
    data = photos.write(folder / "photos")
    run_recipe(recipes.load(str(folder / "shapes.toml")), data, folder / "trained")
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that classifies images, made without a search."""
    pytest.importorskip("onnxruntime")
    return bundles.bundle(tmp_path_factory.mktemp("bundles"), "tiny", heavy=None)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of noise."""
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)).save(path)
    return path


@pytest.fixture(scope="session")
def compiler() -> Iterator[Compiler]:
    """The process that converts for all tests of a session: each would import torch anew."""
    with limited_compiler() as found:
        yield found


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiler: Compiler) -> Path:
    """Latencies without a clock, short final measurements, a cache of its own; the folder that is current then.

    No blocks go to float for speed, which a clock would decide.
    """
    from hnas.deployment import flow, mixing, own, search

    monkeypatch.setattr(search, "MeasuredLatency", photos.Clockless)
    for module in (search, own):
        monkeypatch.setattr(module, "limited_compiler", lambda: nullcontext(compiler))
    monkeypatch.setattr(flow, "PROCESSES", 1)
    monkeypatch.setattr(flow, "BLOCKS", 2)
    monkeypatch.setattr(flow, "compare_again_if_busy", lambda compare, seed: compare(seed))
    monkeypatch.setattr(mixing, "WORTH", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def deploy(trained: Path) -> list[str]:
    """A command line that works."""
    return [
        *("--target", "onnxruntime-cpu", "--precision", "fp32", "--budget", "3evals", "--out", "run"),
        *("--supernet", str(trained / "trained"), "--data", str(trained / "photos")),
    ]
