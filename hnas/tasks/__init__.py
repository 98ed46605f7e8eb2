"""Tasks: batches, loss and metric. One file a kind of data; a task is all that training and scoring know of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from hnas.space import Shape


class Task(Protocol):
    """What a supernet learns and is judged by.

    ``raw`` is whatever the task makes of its examples; nobody else looks into it.
    """

    def batch(self, step: int) -> tuple[Any, Tensor]:
        """(raw, labels) of a step; by the step alone, so that a resumed run sees the same examples."""
        ...

    def inputs(self, raw: Any, shapes: Sequence[Shape]) -> tuple[Tensor, ...]:
        """Raw examples as the inputs of an architecture, each [N, *shape]."""
        ...

    def held(self, split: str) -> tuple[Any, Tensor]:
        """All examples of a held-out split as (raw, labels)."""
        ...

    def loss(self, outputs: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Tensor:
        """What training minimises: with the labels alone, or also towards a teacher's outputs."""
        ...

    def metric(self, outputs: Tensor, labels: Tensor) -> float:
        """How good outputs are; more is better."""
        ...

    def to_json(self) -> Mapping[str, Any]:
        """What makes this task the same one: data, classes, preprocessing."""
        ...
