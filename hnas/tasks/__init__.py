"""Tasks: training batches, held-out splits, loss and metric. Each file of this folder defines one task.

``tasks.load("classification").open_task(folder, size=28)`` returns a ``Task``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from hnas.space import Shape
    from hnas.units import Score


class Task(Protocol):
    """The interface through which training and scoring read data.

    ``raw`` is a batch of examples in the task's own form. Other code may only slice ``raw`` and take its length.
    """

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of batches in one pass over the training examples."""
        ...

    @property
    def splits(self) -> Mapping[str, Sized]:
        """Return the examples of each split by name: "train", "calibration", "search", "test"."""
        ...

    @property
    def score(self) -> Score:
        """Return how the metric is called and written."""
        ...

    @property
    def space_arguments(self) -> Mapping[str, Any]:
        """Return the arguments of a space that depend on the data, such as ``classes`` and ``channels``."""
        ...

    def batch(self, step: int) -> tuple[Any, Tensor]:
        """Return (raw, labels) of a training step.

        The batch depends on the step alone, so that a resumed run trains on the same examples.
        """
        ...

    def inputs(self, raw: Any, shapes: Sequence[Shape]) -> tuple[Tensor, ...]:
        """Return raw examples as the inputs of an architecture, each [N, *shape]."""
        ...

    def held(self, split: str) -> tuple[Any, Tensor]:
        """Return all examples of a held-out split as (raw, labels)."""
        ...

    def loss(self, outputs: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Tensor:
        """Return the loss from the labels alone, or from the labels and the outputs of a teacher."""
        ...

    def metric(self, outputs: Tensor, labels: Tensor) -> float:
        """Return the quality of outputs; higher is better."""
        ...

    def to_json(self) -> Mapping[str, Any]:
        """Return the identity of the task as a JSON object: data, classes, preprocessing."""
        ...


class TaskFile(Protocol):
    """A module of this folder.

    The keyword arguments of ``open_task`` are the keys of a recipe's [data] section. ``batch_size`` and the keys of the
    loss come from [train]. ``seed`` is the seed of the run unless [data] gives another one; a task need not take it.
    """

    def open_task(self, folder: Path | None, **options: Any) -> Task:
        """Return the task of the data in ``folder``."""
        ...


def names() -> tuple[str, ...]:
    """Return the name of every task, which is the name of its file."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def load(name: str) -> TaskFile:
    """Return the module of the task ``name``, imported only now. Raise ValueError for an unknown name."""
    if name not in names():
        raise ValueError(f"no task {name!r}; known: {', '.join(names())}")
    return cast("TaskFile", importlib.import_module(f"{__name__}.{name}"))
