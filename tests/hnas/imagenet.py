"""Data sets with the layout of ImageNet, as folders and as shards, small enough to train on within a test."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog", "eel", "fox")
PER_CLASS = 16


def jpeg(label: int, index: int) -> bytes:
    """A picture of 40 x 30 whose bright quadrant is its class."""
    pixels = np.random.default_rng([label, index]).integers(0, 96, (30, 40, 3)).astype(np.uint8)
    pixels[15 * (label // 2) :, 20 * (label % 2) :][:15, :20] += 128
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "jpeg")
    return stream.getvalue()


def write_folder(root: Path, per_class: int = PER_CLASS) -> Path:
    for split, count, first in (("train", per_class, 0), ("val", 4, 1000)):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(first, first + count):
                (folder / f"{name}_{index:05}.jpg").write_bytes(jpeg(label, index))
    return root


def write_shard(file: Path, examples: list[tuple[str, bytes]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, content in examples:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def pairs(first: int, count: int) -> list[tuple[str, bytes]]:
    """Images and class numbers as neighbours, the classes in turn."""
    found = []
    for index in range(first, first + count):
        found += [(f"{index:06}.jpg", jpeg(index % 4, index)), (f"{index:06}.cls", b"%d" % (index % 4))]
    return found


def write_shards(root: Path, count: int = 6, size: int = 12) -> Path:
    for number in range(count):
        write_shard(root / "train" / f"shard-{number:06}.tar", pairs(number * size, size))
    write_shard(root / "val" / "shard-000000.tar", pairs(1000, 12))
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root
