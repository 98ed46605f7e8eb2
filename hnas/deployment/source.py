"""The supernet of a deployment and the images that judge its subnets. Call `open_source(folder, data)`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from hnas.data.images import Preprocessing
from hnas.deployment.scores import SCORES, read_scores, scores_of
from hnas.journal import digest as digest_of
from hnas.space import Arch
from hnas.supernet import Supernet
from hnas.tasks.classification import Classification, open_held_out
from hnas.training.folder import load_supernet


@dataclass(frozen=True)
class SupernetSource:
    """A supernet and the task that judges it.

    record: the content of supernet.json.
    digest: sha256 of the weights file.
    licence: the licence of the shipped data; empty for a user's own data.
    base_model: the model on the Hugging Face Hub that training started from; empty: none, or it is not there.
    scores: accuracies on the search images that ``hnas-deploy score`` has left in the folder.
    """

    supernet: Supernet
    task: Classification
    record: Mapping[str, Any]
    digest: str
    licence: str = ""
    base_model: str = ""
    scores: Mapping[Arch, float] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """Return what identifies weights, space and images, which the scores come from."""
        judges = {split: self.digests[split] for split in ("calibration", "search")}
        return digest_of([self.digest, self.supernet.space.to_json(), self.record["task"]["preprocessing"], judges])

    @property
    def digests(self) -> dict[str, str]:
        """Return the digest of each held-out split."""
        return {split: data.digest for split, data in self.task.splits.items()}


def open_source(folder: Path | None, data: Path | None) -> SupernetSource:
    """Load a supernet and the held-out images that judge its subnets.

    folder: the folder of the supernet; None: the supernet that is shipped with hnas.
    data: the folder of the images; None: the images that are shipped with hnas.

    Raises:
        FileNotFoundError: a folder or a file is missing.
        ValueError: the record of the supernet is incomplete, or the images have other classes than the supernet.
    """
    with ExitStack() as stack:
        if folder is None:
            folder = stack.enter_context(resources.as_file(resources.files("hnas") / "assets" / "fashion"))
        supernet, record = load_supernet(folder)
        digest = hashlib.sha256((folder / "supernet.safetensors").read_bytes()).hexdigest()
        entries = read_scores(folder / SCORES)
    said = record.get("task")
    if not isinstance(said, dict) or not isinstance(said.get("preprocessing"), dict):
        raise ValueError(f"{folder / 'supernet.json'} does not say what task the supernet was trained for")
    preprocessing = Preprocessing.from_json(said["preprocessing"])
    name = str(said.get("name", "images")) if data is None else data.resolve().name
    task = open_held_out(data, preprocessing, name, skip=bool(record.get("skipped")))
    classes = said.get("classes")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"{folder / 'supernet.json'} does not say which classes the supernet knows")
    if list(task.classes) != classes:
        where = f"the images in {data}" if data else "the shipped images"
        raise ValueError(
            f"{where} have the classes {_first_four(task.classes)}, the supernet knows {_first_four(classes)}; "
            "give the data that it was trained on with --data DIR"
        )
    licence = _licence(record) if data else "Fashion-MNIST (Zalando SE) is under the MIT licence."
    source = SupernetSource(supernet, task, record, digest, licence, _base_model(record) if data else "")
    return replace(source, scores=scores_of(entries, supernet.space, source.identity))


def _base_model(record: Mapping[str, Any]) -> str:
    """Return OWNER/NAME of pretrained weights that timm took from the Hugging Face Hub; empty for other weights."""
    recipe = record.get("recipe")
    given = recipe.get("pretrained") if isinstance(recipe, dict) else None
    found = (
        re.fullmatch(r"timm, ([\w.-]+/[\w.-]+)", str(given.get("origin")), re.ASCII)
        if isinstance(given, dict)
        else None
    )
    return found[1] if found else ""


def _licence(record: Mapping[str, Any]) -> str:
    """Return which pretrained weights the training started from, and their licence; empty without such weights."""
    recipe = record.get("recipe")
    given = recipe.get("pretrained") if isinstance(recipe, dict) else None
    if not isinstance(given, dict):
        return ""
    name, origin, licence, digest = (str(given.get(key, "unknown")) for key in ("name", "origin", "licence", "sha256"))
    return f"Training started from the weights of {name} ({origin}; sha256 {digest[:16]}); their licence: {licence}."


def _first_four(classes: Sequence[str]) -> str:
    return f"{', '.join(classes[:4])}{', ...' if len(classes) > 4 else ''} ({len(classes)})"
