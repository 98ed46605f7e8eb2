"""Keep one size of a graph open, such as the batch: ``parse_dynamic({"x": {0: "batch"}}, names, inputs)``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from hnas.export.device.dynamic import DynamicSize

if TYPE_CHECKING:
    from hnas.export.graph.program import Program

aten = torch.ops.aten
_SHAPED = {aten.view.default, aten.reshape.default, aten._unsafe_view.default}
_RANGE = re.compile(r"(\w+)(?:=(\d+)\.\.(\d+))?")


def parse_dynamic(
    asked: Mapping[str, Mapping[int, str]], names: Sequence[str], inputs: Sequence[Tensor]
) -> DynamicSize:
    """Return the size that the option ``dynamic`` of a compilation names.

    ``asked``: for each input, the axis and the name of the size: ``{"x": {0: "batch"}}``, or ``"batch=1..32"`` with a
    range.

    Raises:
        ValueError: there is no such input or axis, several sizes are named, or the examples disagree.
    """
    axes: list[int | None] = [None] * len(names)
    texts, sizes = set(), set()
    for name, named in asked.items():
        if name not in names:
            raise ValueError(f"dynamic names the input {name!r}; known: {', '.join(names)}")
        value = inputs[names.index(name)]
        if len(named) != 1 or not all(type(axis) is int and 0 <= axis < value.ndim for axis in named):
            raise ValueError(f"dynamic has {dict(named)!r} for {name}, expected one axis below {value.ndim}")
        ((axis, text),) = named.items()
        axes[names.index(name)] = axis
        texts.add(text)
        sizes.add(value.shape[axis])
    found = _RANGE.fullmatch(str(next(iter(texts)))) if len(texts) == 1 else None
    if found is None:
        raise ValueError(f"dynamic names the sizes {sorted(map(str, texts))}, expected one, like batch or batch=1..32")
    low, high = (1, None) if found[2] is None else (int(found[2]), int(found[3]))
    size = DynamicSize(found[1], low, high, tuple(axes))
    if len(sizes) != 1 or not size.allows(next(iter(sizes))):
        raise ValueError(f"the examples have the sizes {sorted(sizes)}, expected one {size.words()}")
    return size


def with_size(inputs: Sequence[Tensor], size: DynamicSize, count: int) -> tuple[Tensor, ...]:
    """Return the inputs with the dynamic size ``count``: repeated, then cut."""
    found = []
    for value, axis in zip(inputs, size.inputs, strict=True):
        if axis is not None:
            rows = torch.arange(count) % value.shape[axis]
            value = value.index_select(axis, rows).contiguous()
        found.append(value)
    return tuple(found)


def exported_shapes(size: DynamicSize) -> list[dict[int, Any]]:
    """Return the argument ``dynamic_shapes`` of torch.export, one entry for each input."""
    dim = torch.export.Dim(size.name, max=size.high) if size.high else torch.export.Dim(size.name)
    return [{} if axis is None else {axis: dim} for axis in size.inputs]


def example_call(program: Program) -> tuple[tuple[Tensor, ...], tuple[dict[int, Any], ...] | None]:
    """Return the example inputs and the argument ``dynamic_shapes`` for another export of a program."""
    if program.dynamic is None:
        return program.inputs, None
    return with_size(program.inputs, program.dynamic, 2), tuple(exported_shapes(program.dynamic))


def close_shapes(module: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
    """Write -1 for the open size where a shape allows it, and record the sizes of the examples at every node."""
    for node in module.graph.nodes:
        _close(node)
    for node in reversed(list(module.graph.nodes)):
        if node.op == "call_function" and not node.users and _is_size(node):
            module.graph.erase_node(node)
    module.recompile()
    values: dict[fx.Node, Any] = {}
    _Recorder(module, values).run(*inputs)
    for node, value in values.items():
        if node.op != "output":
            node.meta["val"] = map_aggregate(value, _described)


def _close(node: Any) -> None:
    if node.target in _SHAPED:
        shape = [-1 if isinstance(each, torch.SymInt) else each for each in node.meta["val"].shape]
        if shape.count(-1) == 1:
            node.args = (node.args[0], shape)
    if node.target is aten.expand.default:
        source, asked = node.args[0].meta["val"].shape, node.args[1]
        known = [None] * (len(asked) - len(source)) + list(source)
        kept = [-1 if isinstance(have, torch.SymInt) else each for have, each in zip(known, asked, strict=True)]
        node.args = (node.args[0], kept, *node.args[2:])


def has_open_sizes(module: fx.GraphModule) -> bool:
    """Return whether an operator of the graph computes a size."""
    return any(node.op == "call_function" and _is_size(node) for node in module.graph.nodes)


def outputs_of(run: Any, inputs: Sequence[Tensor], size: DynamicSize) -> DynamicSize:
    """Return ``size`` with the axes of the outputs, found by two runs of different sizes.

    Raises:
        ValueError: an output has more than one such axis, or one that is not the size itself.
    """
    small, large = (run(*with_size(inputs, size, count)) for count in (2, 3))
    axes: list[int | None] = []
    for index, (a, b) in enumerate(zip(small, large, strict=True)):
        moved = [axis for axis in range(a.ndim) if a.shape[axis] != b.shape[axis]]
        if len(moved) > 1 or any((a.shape[axis], b.shape[axis]) != (2, 3) for axis in moved):
            shapes = f"{list(a.shape)} and {list(b.shape)}"
            raise ValueError(f"output {index} has the shapes {shapes} for a {size.name} of 2 and 3; keep it fixed")
        axes.append(moved[0] if moved else None)
    return replace(size, outputs=tuple(axes))


def keeps_size(function: Callable[[Program], Program], program: Program) -> Program:
    """Return ``function(program)``, or ``program`` where the change would fix its open size."""
    if program.dynamic is None:
        return function(program)
    inputs = with_size(program.inputs, program.dynamic, 3)
    try:
        changed = function(program)
        same = [value.shape for value in changed(*inputs)] == [value.shape for value in program(*inputs)]
    except Exception:  # noqa: BLE001  # it may read a size as a number
        return program
    return changed if same else program


def _is_size(node: fx.Node) -> bool:
    return node.target is aten.sym_size.int or not isinstance(node.meta.get("val", 0), Tensor | tuple | list)


def _described(value: Any) -> Any:
    return torch.empty_like(value, device="meta") if isinstance(value, Tensor) else value


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, values: dict[fx.Node, Any]) -> None:
        super().__init__(module)
        self._values = values

    def run_node(self, n: fx.Node) -> Any:
        self._values[n] = value = super().run_node(n)
        return value
