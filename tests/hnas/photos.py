"""Photographs of three shapes, a recipe for them, and computed latencies, for a deployment within seconds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from hnas.cost import Price
from hnas.cost.flops import parameters
from hnas.space import Arch
from hnas.study import Study

CLASSES = ("bar", "dot", "ring")
RECIPE = """
[space]
name = "hybrid_vision"
resolutions = [12, 16]
stem = 8
widths = [[8, 16], [16, 24]]
depths = [[1, 2], [1, 2]]
strides = [2, 2]
head = 16
kernels = [3, 5]
expansions = [1, 2]
heads = [1, 2]
attention_tokens = 16

[data]
size = 16
channels = 3

[train]
strategy = "sandwich"
epochs = 6
batch = 16
rate = 0.1
"""


def write(folder: Path, each: int = 60) -> Path:
    """Three sub-folders of PNG and JPEG files of different sizes."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            height, width = rng.integers(20, 48, 2)
            y, x = np.mgrid[:height, :width]
            y, x = y / height - 0.5, x / width - 0.5
            radius = np.hypot(x, y)
            shape = (np.abs(x) < 0.12, radius < 0.22, np.abs(radius - 0.35) < 0.08)[label]
            pixels = rng.normal(60, 12, (height, width, 3)) + 150 * shape[..., None]
            suffix = ("png", "jpg")[i % 2]
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{i:03}.{suffix}")
    return folder


class Clockless:
    """In place of ``MeasuredLatency``: a latency computed from the number of weights, equal in every run."""

    precision = "fp32"

    def __init__(self, study: Study, *_: object, compiler: object) -> None:
        self.study = study

    def __call__(self, arch: Arch) -> Price:
        value = parameters(self.study.supernet.skeleton(arch)) / 1e4
        return Price(value, "ms", value, value, "measured")

    def close(self) -> None:
        pass


def journal(run: Path) -> dict[str, object]:
    """Return the keys and answers of the whole lines of a run's journal, without the seconds."""
    whole = (run / "journal.jsonl").read_bytes().split(b"\n")[:-1]
    lines = [json.loads(line) for line in whole]
    return {key: answer for key, answer, *_ in lines}


def tree(folder: Path) -> set[str]:
    """Everything in a folder, by relative name."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
