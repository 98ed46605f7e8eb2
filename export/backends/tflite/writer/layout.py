"""Track the axis order of each value: a program has PyTorch's order of axes, the runtime needs channels last.

A value records the order of its axes (``Placed``). A permute only changes this record, and writes no TRANSPOSE.
A tensor is transposed when an operator needs another order, at most once for each order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from hnas.export.backends.tflite.writer.model import Model, Operator, Value, constant_tensor

Order = tuple[int, ...]

NHWC: Order = (0, 2, 3, 1)


@dataclass(frozen=True)
class Placed:
    """Hold a value of the program: axis i of the tensor is the program's axis ``order[i]``."""

    value: Value
    order: Order

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape in the program's order of axes."""
        return tuple(self.value.shape[self.order.index(axis)] for axis in range(len(self.order)))

    def axis(self, axis: int) -> int:
        """Return the position of the program's ``axis`` in the tensor."""
        return self.order.index(axis % len(self.order))

    def permuted(self, dims: Sequence[int]) -> Placed:
        """Return the value with its program axes permuted to ``dims``. No data is moved."""
        inverse = np.argsort([dim % len(dims) for dim in dims])
        return Placed(self.value, tuple(int(inverse[axis]) for axis in self.order))


def plain(rank: int) -> Order:
    """Return the program's own order of axes."""
    return tuple(range(rank))


def channels_last_order(rank: int) -> Order:
    """Return the order of ``rank`` axes with axis 1 (the channels) at the end."""
    return (0, *range(2, rank), 1) if rank > 2 else plain(rank)


class Moves:
    """Write transposes and reshapes into ``model``, each at most once."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._known: dict[tuple[Value, str, tuple[int, ...]], Value] = {}

    def moved(self, placed: Placed, order: Order) -> Value:
        """Return the tensor with its axes in ``order``: unchanged, transposed, or reshaped if only axes of 1 move."""
        steps = tuple(placed.order.index(axis) for axis in order)
        value = placed.value
        if steps == plain(len(steps)):
            return value
        shape = tuple(value.shape[step] for step in steps)
        if value.data is not None:
            return self._once(value, "TRANSPOSE", steps, shape)
        real = [step for step in steps if value.shape[step] != 1]
        if real == sorted(real):
            return self._once(value, "RESHAPE", shape, shape)
        return self._once(value, "TRANSPOSE", steps, shape)

    def reshaped(self, placed: Placed, shape: Sequence[int], wanted: Order | None = None) -> Placed:
        """Return the value with another shape of the program.

        The tensor is transposed first if the new axes would not be contiguous.

        wanted: the order that its readers prefer. It is used only if it needs no transpose.
        """
        shape = tuple(int(size) for size in shape)
        if shape == placed.shape:
            return placed
        wanted = wanted or plain(len(shape))
        groups = _groups(placed.shape, shape)
        walk = _walk(placed, groups)
        if walk is None:
            before = _walk(Placed(Value(tuple(shape[axis] for axis in wanted)), wanted), [(b, a) for a, b in groups])
            order = _complete(before or plain(len(placed.shape)), placed.shape)
            placed = Placed(self.moved(placed, order), order)
            walk = _walk(placed, groups)
            assert walk is not None
        order = _order(walk, shape, wanted)
        sizes = tuple(shape[axis] for axis in order)
        return Placed(self._once(placed.value, "RESHAPE", sizes, sizes), order)

    def _once(self, value: Value, kind: str, argument: tuple[int, ...], shape: tuple[int, ...]) -> Value:
        key = (value, kind, argument)
        if key not in self._known:
            if value.data is not None:
                data = value.data.transpose(argument) if kind == "TRANSPOSE" else value.data.reshape(shape)
                self._known[key] = constant_tensor(data)
            elif value.shape == shape and kind == "RESHAPE":
                self._known[key] = value
            else:
                made = Value(shape, value.dtype, range=value.range)
                options = {"newShape": np.array(shape, np.int32)} if kind == "RESHAPE" else {}
                self._model.operators.append(Operator(kind, [value, constant_tensor(argument)], [made], options))
                self._known[key] = made
        return self._known[key]


Group = tuple[list[int], list[int]]  # axes before, axes after: the same elements in the same sequence


def _groups(before: Sequence[int], after: Sequence[int]) -> list[Group]:
    """Return the smallest groups of successive axes with equal products. Axes of size 1 belong to no group."""
    left = [axis for axis, size in enumerate(before) if size != 1]
    right = [axis for axis, size in enumerate(after) if size != 1]
    groups: list[Group] = []
    while left or right:
        ours, theirs = [left.pop(0)], [right.pop(0)]
        while (a := prod(before[axis] for axis in ours)) != (b := prod(after[axis] for axis in theirs)):
            if a < b:
                ours.append(left.pop(0))
            else:
                theirs.append(right.pop(0))
        groups.append((ours, theirs))
    return groups


def _walk(placed: Placed, groups: Sequence[Group]) -> list[int] | None:
    """Return the new axes in their order in memory, or None where a group is not contiguous."""
    shape = placed.shape
    lie = [axis for axis in placed.order if shape[axis] != 1]
    found: list[int] = []
    starts = {ours[0]: (ours, theirs) for ours, theirs in groups}
    while lie:
        ours, theirs = starts.get(lie[0], ([], []))
        if not ours or lie[: len(ours)] != ours:
            return None
        found += theirs
        del lie[: len(ours)]
    return found


def _order(walk: Sequence[int], shape: Sequence[int], wanted: Order) -> Order:
    """Return an order whose axes larger than 1 follow ``walk``: the wanted one, else the plain one, else another."""
    for order in (wanted, plain(len(shape))):
        if [axis for axis in order if shape[axis] != 1] == list(walk):
            return order
    return _complete(walk, shape)


def _complete(walk: Sequence[int], shape: Sequence[int]) -> Order:
    """Return ``walk`` with its missing axes, all of size 1, in front."""
    return (*(axis for axis in range(len(shape)) if axis not in walk), *walk)
