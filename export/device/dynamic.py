"""Describe the one size of an artifact that a caller may choose, such as the batch: ``DynamicSize.of(artifact)``.

The specs of an artifact hold the sizes of the examples. The note ``dynamic`` says which of them may differ, so that
programs that do not know the note run the artifact at the sizes of the examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional, Sequence, Tuple

from hnas.export.device.records import decode, encode

if TYPE_CHECKING:
    from hnas.export.device.artifact import Artifact, TensorSpec
    from hnas.export.device.records import JSON

NOTE = "dynamic"


@dataclass(frozen=True)
class DynamicSize:
    """Say which axis of each input and output has the size ``name``, and the range of this size.

    ``low``, ``high``: the smallest and the largest size; None: no limit.
    ``inputs``, ``outputs``: the axis of each tensor, or None for a tensor of fixed sizes.

    Raises:
        ValueError: the range is empty.
    """

    name: str
    low: int
    high: Optional[int]
    inputs: Tuple[Optional[int], ...]
    outputs: Tuple[Optional[int], ...] = ()

    def __post_init__(self) -> None:
        if self.low < 1 or (self.high is not None and self.high < self.low):
            raise ValueError(f"the range of {self.name} is {self.low} to {self.high}, expected 1 or more, not empty")

    @classmethod
    def of(cls, artifact: Artifact) -> Optional[DynamicSize]:
        """Return the dynamic size of an artifact, or None. Raise ValueError for a wrong note."""
        note = artifact.notes.get(NOTE)
        if note is None:
            return None
        found = decode(cls, note, "artifact.json", f"notes.{NOTE}")
        for axes, tensors in ((found.inputs, artifact.inputs), (found.outputs, artifact.outputs)):
            if len(axes) != len(tensors) or not all(map(_exists, axes, tensors)):
                raise ValueError(f"artifact.json: notes.{NOTE} does not fit the inputs and outputs")
        return found

    def to_json(self) -> JSON:
        """Return the fields as JSON values."""
        return encode(self)

    def allows(self, size: int) -> bool:
        """Return whether ``size`` is in the range."""
        return self.low <= size and (self.high is None or size <= self.high)

    def words(self) -> str:
        """Return the range for an error."""
        return (
            f"{self.name} of {self.low} or more" if self.high is None else f"{self.name} of {self.low} to {self.high}"
        )


def rows_of(artifact: Artifact) -> Optional[int]:
    """Return the length of the first axis, if it is fixed and the same in all inputs and outputs; else None."""
    lengths = {spec.shape[:1] for spec in (*artifact.inputs, *artifact.outputs)}
    fixed = len(lengths) == 1 and DynamicSize.of(artifact) is None
    return next(iter(lengths.pop()), None) or None if fixed else None


def resized(shapes: Sequence[Tuple[int, ...]], axes: Sequence[Optional[int]], size: int) -> list[Tuple[int, ...]]:
    """Return the shapes with the dynamic size ``size``."""
    return [shape if axis is None else (*shape[:axis], size, *shape[axis + 1 :]) for shape, axis in zip(shapes, axes)]


def _exists(axis: Optional[int], tensor: TensorSpec) -> bool:
    return axis is None or 0 <= axis < len(tensor.shape)
