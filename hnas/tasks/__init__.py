"""Tasks: batches, loss and metric. One file a kind of data; a task is all that training and scoring know of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from hnas.space import Shape


class Task(Protocol):
    """What a supernet learns and is judged by.

    ``batch(step)`` depends on the step alone, so that a resumed run sees the same images. ``inputs`` brings raw examples to
    the input shapes of an architecture. ``held(split)`` gives all examples of a held-out split as (raw, labels).
    """

    def batch(self, step: int) -> tuple[Any, Tensor]: ...

    def inputs(self, raw: Any, shapes: Sequence[Shape]) -> tuple[Tensor, ...]: ...

    def held(self, split: str) -> tuple[Any, Tensor]: ...

    def loss(self, outputs: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Tensor: ...

    def metric(self, outputs: Tensor, labels: Tensor) -> float: ...

    def to_json(self) -> Mapping[str, Any]: ...
