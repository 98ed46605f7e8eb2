"""Keep one size of a graph open, such as the batch: ``close_shapes(module, inputs)`` after its export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from hnas.export.graph.sizes import find_output_axes

if TYPE_CHECKING:
    from hnas.export.device.dynamic import DynamicSize
    from hnas.export.graph.program import Program

aten = torch.ops.aten
_SHAPED = {aten.view.default, aten.reshape.default, aten._unsafe_view.default}


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
    return find_output_axes(small, large, size)


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
