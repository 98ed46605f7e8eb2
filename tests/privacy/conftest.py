"""A folder to run commands in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXPORTED = """
import torch

def build():
    torch.manual_seed(0)
    return torch.nn.Linear(4, 3)

class Computed(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.conv1d(x, x[:, :, :3])

def computed():
    return Computed()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two empty homes, a few photographs of two classes, and a module with a network."""
    folder = tmp_path_factory.mktemp("traced")
    (folder / "home").mkdir()
    (folder / "loud").mkdir()
    (folder / "mine.py").write_text(EXPORTED)
    random = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (folder / "photos" / name).mkdir(parents=True)
        for index in range(40):
            pixels = random.integers(0, 255, (20, 20, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{index}.png")
    return folder
