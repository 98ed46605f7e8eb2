"""Read the option ``dynamic`` of a compilation, for modules and ONNX files: ``parse_dynamic(asked, names, inputs)``.

This file does not import torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hnas.export.device.dynamic import DynamicSize

if TYPE_CHECKING:
    from hnas.export.graph.samples import Sample

Asked = Mapping[str, Mapping[int, str]]
_RANGE = re.compile(r"(\w+)(?:=(\d+)\.\.(\d+))?")


class _Shaped(Protocol):
    """Anything that has a shape: a tensor, an array, a record of a tensor."""

    @property
    def shape(self) -> Any:
        """Return the sizes."""


def parse_dynamic(asked: Asked, names: Sequence[str], inputs: Sequence[_Shaped]) -> DynamicSize:
    """Return the size that the option ``dynamic`` of a compilation names.

    ``asked``: for each input, the axis and the name of the size: ``{"x": {0: "batch"}}``, or ``"batch=1..32"`` with a
    range.
    ``inputs``: the example inputs, in the order of ``names``.

    Raises:
        ValueError: there is no such input or axis, several sizes are named, or the examples disagree.
    """
    axes: list[int | None] = [None] * len(names)
    texts, sizes = set(), set()
    for name, named in asked.items():
        if name not in names:
            raise ValueError(f"dynamic names the input {name!r}; known: {', '.join(names)}")
        shape = inputs[names.index(name)].shape
        if len(named) != 1 or not all(type(axis) is int and 0 <= axis < len(shape) for axis in named):
            raise ValueError(f"dynamic has {dict(named)!r} for {name}, expected one axis below {len(shape)}")
        ((axis, text),) = named.items()
        axes[names.index(name)] = axis
        texts.add(text)
        sizes.add(shape[axis])
    found = _RANGE.fullmatch(str(next(iter(texts)))) if len(texts) == 1 else None
    if found is None:
        raise ValueError(f"dynamic names the sizes {sorted(map(str, texts))}, expected one, like batch or batch=1..32")
    low, high = (1, None) if found[2] is None else (int(found[2]), int(found[3]))
    size = DynamicSize(found[1], low, high, tuple(axes))
    if len(sizes) != 1 or not size.allows(next(iter(sizes))):
        raise ValueError(f"the examples have the sizes {sorted(sizes)}, expected one {size.words()}")
    return size


def smallest(asked: Asked, name: str, axis: int) -> int | None:
    """Return the smallest size that ``asked`` allows for an axis of an input; None where it does not name the axis."""
    text = asked.get(name, {}).get(axis)
    found = None if text is None else _RANGE.fullmatch(str(text))
    return None if found is None else int(found[2] or 1)


def find_output_axes(small: Sequence[_Shaped], large: Sequence[_Shaped], size: DynamicSize) -> DynamicSize:
    """Return ``size`` with the axes of the outputs, from the outputs for a size of 2 and of 3.

    Raises:
        ValueError: an output has more than one such axis, or one that is not the size itself.
    """
    axes: list[int | None] = []
    for index, (a, b) in enumerate(zip(small, large, strict=True)):
        one, other = list(a.shape), list(b.shape)
        moved = [axis for axis, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]]
        if len(one) != len(other) or len(moved) > 1 or any((one[axis], other[axis]) != (2, 3) for axis in moved):
            shapes = f"{one} and {other}"
            raise ValueError(f"output {index} has the shapes {shapes} for a {size.name} of 2 and 3; keep it fixed")
        axes.append(moved[0] if moved else None)
    return replace(size, outputs=tuple(axes))


def sample_of_size(samples: Sequence[Sample], size: DynamicSize, count: int) -> Sample:
    """Return a sample with the dynamic size ``count``: the samples joined along it, repeated and cut.

    An input of fixed sizes is that of the first sample.
    """
    found = []
    for values, axis in zip(zip(*samples, strict=True), size.inputs, strict=True):
        value = values[0]
        if axis is not None:
            joined = np.concatenate(values[:count], axis)
            value = np.ascontiguousarray(np.take(joined, np.arange(count) % joined.shape[axis], axis))
        found.append(value)
    return tuple(found)
