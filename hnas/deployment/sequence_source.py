"""The supernet of a series or a text, and the data that judge its subnets. Call `open_sequence(plan)`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hnas.deployment.plan import Plan
from hnas.recipes import Recipe
from hnas.recipes.parts import check_same_data, open_task_of
from hnas.recipes.schema import decode_recipe
from hnas.supernet import Supernet
from hnas.tasks import Task
from hnas.training.folder import load_supernet


@dataclass(frozen=True)
class SequenceSource:
    """A recurrent supernet and the task that judges it.

    digest: sha256 of the weights file.
    """

    supernet: Supernet
    task: Task
    digest: str

    @property
    def digests(self) -> Mapping[str, str]:
        """Return the digest of each part of the data."""
        found: Mapping[str, str] = self.task.to_json()["digests"]
        return found


def open_sequence(plan: Plan) -> SequenceSource:
    """Load the supernet of a series or a text, and the data of its training.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the data is not that of the training, or a constraint on the accuracy is given.
    """
    assert plan.supernet is not None
    if others := [bound.metric for bound in plan.bounds if bound.metric == "accuracy"]:
        raise ValueError(f"a network of series or text has no {others[0]} in [0, 1]; leave out --min-accuracy")
    supernet, record = load_supernet(plan.supernet)
    task = _open_task(record, plan.supernet, plan.data)
    digest = hashlib.sha256((plan.supernet / "supernet.safetensors").read_bytes()).hexdigest()
    return SequenceSource(supernet, task, digest)


def _open_task(record: Mapping[str, Any], folder: Path, data: Path | None) -> Task:
    """Return the task of the training in ``folder``. Raise ValueError if the data is another."""
    try:
        recipe = Recipe(**record["recipe"])
    except (KeyError, TypeError):
        raise ValueError(f"{folder} does not say which recipe trained it; train it again") from None
    if data is None and not recipe.data.get("source"):
        raise ValueError("the scores of a step need the data of the training: give --data FILE")
    task = open_task_of(decode_recipe(recipe), data)
    check_same_data(task, record, folder)
    return task
