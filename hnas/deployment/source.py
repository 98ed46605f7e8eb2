"""What a deployment starts from: a trained supernet and the images that judge its subnets."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from hnas.data.images import Preprocessing
from hnas.supernet import Supernet
from hnas.tasks.classification import Classification, open_held_out
from hnas.training.folder import load_supernet


@dataclass(frozen=True)
class Source:
    """A supernet and the task that judges it.

    record: the supernet's own; digest: sha256 of its weights file; licence: of the shipped data, else empty.
    """

    supernet: Supernet
    task: Classification
    record: Mapping[str, Any]
    digest: str
    licence: str = ""

    @property
    def digests(self) -> dict[str, str]:
        """The digests of the held-out splits."""
        return {split: data.digest for split, data in self.task.splits.items()}


def open_source(folder: Path | None, data: Path | None) -> Source:
    """The supernet in ``folder`` with the held-out images of ``data``; None takes what is shipped."""
    with ExitStack() as stack:
        if folder is None:
            folder = stack.enter_context(resources.as_file(resources.files("hnas") / "assets" / "fashion"))
        supernet, record = load_supernet(folder)
        digest = hashlib.sha256((folder / "supernet.safetensors").read_bytes()).hexdigest()
    said = record.get("task")
    if not isinstance(said, dict) or not isinstance(said.get("preprocessing"), dict):
        raise ValueError(f"{folder / 'supernet.json'} does not say what task the supernet was trained for")
    preprocessing = Preprocessing.from_json(said["preprocessing"])
    name = str(said.get("name", "images")) if data is None else data.resolve().name
    task = open_held_out(data, preprocessing, name)
    classes = said.get("classes")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"{folder / 'supernet.json'} does not say which classes the supernet knows")
    if list(task.classes) != classes:
        where = f"the images in {data}" if data else "the shipped images"
        raise ValueError(
            f"{where} have the classes {_some(task.classes)}, the supernet knows {_some(classes)}; "
            "give the data that it was trained on with --data DIR"
        )
    return Source(
        supernet, task, record, digest, "Fashion-MNIST (Zalando SE) is under the MIT licence." if data is None else ""
    )


def _some(classes: Sequence[str]) -> str:
    return f"{', '.join(classes[:4])}{', ...' if len(classes) > 4 else ''} ({len(classes)})"
