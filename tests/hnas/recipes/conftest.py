"""Fixtures of the recipes' tests: images to train on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hnas.data.images import write_idx
from tests.hnas import tiny


@pytest.fixture
def source(tmp_path, monkeypatch) -> Path:
    """Write IDX files of 12 x 12 images, with small held-out splits."""
    monkeypatch.setattr("hnas.data.images.HELD", {"calibration": 32, "search": 32})
    folder = tmp_path / "data"
    folder.mkdir()
    for prefix, n in (("train", 192), ("t10k", 32)):
        found = tiny.data(n, n)
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", found.images[..., 0])
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", found.labels.astype(np.uint8))
    return folder
