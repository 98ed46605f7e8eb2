"""Cut a part out of a program as a program of its own, with recorded inputs: ``carve(whole, ends, cuts=nodes)``."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any

import torch
from torch import Tensor, fx, nn

from hnas.export.graph.nodes import aten, constant_value
from hnas.export.graph.program import Program

Call = tuple[Tensor, ...]  # the inputs of one call


@dataclass(frozen=True, eq=False)
class Subprogram:
    """Hold a program and inputs for it.

    calls: one tuple of inputs for each call. The first is the example inputs of the program.
    """

    program: Program
    calls: tuple[Call, ...]

    @property
    def operators(self) -> list[fx.Node]:
        """Return the operator calls of the graph, in order."""
        return [node for node in self.program.module.graph.nodes if node.op == "call_function"]

    @property
    def ends(self) -> tuple[fx.Node, ...]:
        """Return the nodes that are the outputs."""
        (output,) = (node for node in self.program.module.graph.nodes if node.op == "output")
        found: Any = output.args[0]
        return tuple(found) if isinstance(found, tuple | list) else (found,)

    @property
    def size(self) -> tuple[int, int, int]:
        """Return (operators, elements of the weights and of one call, calls). A reduction makes this tuple smaller."""
        weights = sum(value.numel() for value in self.program.module.state_dict().values())
        values = weights + sum(value.numel() for value in self.calls[0])
        return len(self.operators), values, len(self.calls)


@dataclass(frozen=True)
class SizeChange:
    """Describe a reduction of the size ``old`` to ``new`` in tensors and arguments.

    axis: the axis of the inputs that is changed; None for every axis of inputs and weights.
    arguments: True replaces the size in arguments of operators too.
    multiples: True replaces each multiple of ``old`` in proportion.
    """

    old: int
    new: int
    axis: int | None = None
    arguments: bool = True
    multiples: bool = False

    def of(self, size: int) -> int:
        """Return the replacement of ``size``."""
        if self.multiples and size and size % self.old == 0:
            return size // self.old * self.new
        return self.new if size == self.old else size

    def cut(self, value: Tensor, is_input: bool) -> Tensor:
        """Return the leading part of ``value``, cut to the new sizes."""
        for axis, size in enumerate(value.shape):
            if self.axis is None or (is_input and axis == self.axis):
                value = value.narrow(axis, 0, self.of(size))
        return value.clone(memory_format=torch.contiguous_format)

    def argument(self, value: Any) -> Any:
        """Return an argument of an operator with its sizes replaced, such as a shape or a number of groups."""
        if isinstance(value, tuple | list):
            return type(value)(self.argument(part) for part in value)
        return self.of(value) if self.arguments and type(value) is int else value


def carve(
    whole: Subprogram,
    ends: Sequence[fx.Node] | None = None,
    *,
    cuts: Collection[fx.Node] = (),
    instead: Mapping[fx.Node, fx.Node] | None = None,
    change: SizeChange | None = None,
) -> Subprogram | None:
    """Return the part of a graph between ``cuts`` and ``ends`` as a program with copied weights, or None.

    whole: the program, and the calls on which the inputs of the part are recorded.
    ends: the outputs of the part; None for the outputs of ``whole``.
    cuts: nodes whose recorded values become inputs.
    instead: replaced nodes; readers of a key read its value instead.
    change: a replacement of sizes.

    Return None if the part has no input, does not run, or has an output that is not finite.
    """
    instead, ends = instead or {}, ends or whole.ends
    needed, begins = ancestors(ends, cuts, instead)
    order = [node for node in whole.program.module.graph.nodes if node in needed]
    inputs = [node for node in order if node in begins]
    if not inputs:
        return None
    try:
        calls = _calls(whole, inputs, recorded=bool(cuts))
        part = _copied(whole.program.module, order, inputs, ends, instead, change)
        program = Program(part, calls[0])
        _describe(program)
        outputs = [output for call in calls for output in program(*call)]
    except Exception:  # noqa: BLE001  # an operator may raise any type for a size that does not fit
        return None
    finite = all(bool(torch.isfinite(value).all()) for value in outputs if value.is_floating_point())
    return Subprogram(program, calls) if finite else None


def isolate(whole: Program, operators: Collection[fx.Node], end: float) -> dict[fx.Node, Program]:
    """Return each operator as a program of its own, whose inputs are the values that it has in ``whole``.

    end: time limit, in seconds of ``monotonic``. Operators without an input, or not reached by then, are left out.
    """
    inputs = {node: [source for source in node.all_input_nodes if source.op != "get_attr"] for node in operators}
    found: dict[fx.Node, Any] = {}
    with suppress(TimeoutError), torch.no_grad():
        _Recorder(whole.module, {source for each in inputs.values() for source in each}, found, end).run(*whole.inputs)
    parts = {}
    for node, sources in inputs.items():
        if sources and all(isinstance(found.get(source), Tensor) for source in sources):
            ends = [node] if is_tensor(node) else [*node.users]
            constants = [source for source in node.all_input_nodes if source.op == "get_attr"]
            order = list(dict.fromkeys([*constants, *sources, node, *ends]))
            values = tuple(found[source].clone(memory_format=torch.contiguous_format) for source in sources)
            parts[node] = Program(_copied(whole.module, order, sources, ends, {}, None), values)
            _describe(parts[node])
    return parts


def ancestors(
    ends: Sequence[fx.Node], cuts: Collection[fx.Node], instead: Mapping[fx.Node, fx.Node]
) -> tuple[set[fx.Node], set[fx.Node]]:
    """Return the nodes that ``ends`` are computed from, and those among them that are inputs.

    cuts: nodes that count as inputs.
    instead: replaced nodes; readers of a key read its value instead.
    """
    needed: set[fx.Node] = set()
    begins: set[fx.Node] = set()
    left = [instead.get(end, end) for end in ends]
    while left:
        node = left.pop()
        if node in needed:
            continue
        needed.add(node)
        if node in cuts or node.op == "placeholder":
            begins.add(node)
        else:
            left += [instead.get(source, source) for source in node.all_input_nodes]
    return needed, begins


def _calls(whole: Subprogram, inputs: Sequence[fx.Node], *, recorded: bool) -> tuple[Call, ...]:
    """Return the values of ``inputs`` for each call: recorded in a run of ``whole``, or chosen from its inputs."""
    if recorded:
        return tuple(_recorded(whole, call, inputs) for call in whole.calls)
    places = [node for node in whole.program.module.graph.nodes if node.op == "placeholder"]
    chosen = [places.index(node) for node in inputs]
    return tuple(tuple(call[index] for index in chosen) for call in whole.calls)


def _copied(
    module: fx.GraphModule,
    order: Sequence[fx.Node],
    inputs: Sequence[fx.Node],
    ends: Sequence[fx.Node],
    instead: Mapping[fx.Node, fx.Node],
    change: SizeChange | None,
) -> fx.GraphModule:
    """Return a graph module of the nodes ``order``, with ``inputs`` as placeholders and ``ends`` as outputs."""
    root, graph = nn.Module(), fx.Graph()
    copies = {node: graph.placeholder(f"input_{index}") for index, node in enumerate(inputs)}
    names: dict[str, str] = {}
    for node in order:
        if node in copies:
            continue
        if node.op == "get_attr":
            target = str(node.target)
            if target not in names:
                names[target] = f"constant_{len(names)}"
                value = constant_value(module, node).detach()
                root.register_buffer(names[target], change.cut(value, False) if change else value.clone())
            copies[node] = graph.get_attr(names[target])
            continue
        copies[node] = graph.node_copy(node, lambda source: copies[instead.get(source, source)])
        if node.target is aten.view.default:  # a view needs strides that a recorded value does not have
            copies[node].target = aten.reshape.default
        if change is not None:
            args = tuple(change.argument(value) for value in copies[node].args)
            kwargs = {name: change.argument(value) for name, value in copies[node].kwargs.items()}
            copies[node].args, copies[node].kwargs = args, kwargs
    values = tuple(copies[instead.get(end, end)] for end in ends)
    graph.output(values[0] if len(values) == 1 else values)
    graph.lint()
    return fx.GraphModule(root, graph)


def _recorded(whole: Subprogram, call: Call, nodes: Sequence[fx.Node]) -> Call:
    """Return the values of ``nodes`` on a call."""
    values: dict[fx.Node, Any] = {}
    _Recorder(whole.program.module, set(nodes), values).run(*call)
    return tuple(values[node].clone(memory_format=torch.contiguous_format) for node in nodes)


def _describe(program: Program) -> None:
    """Record the shape and type of the value of every node, as capture does. Passes and writers read them."""
    values: dict[fx.Node, Any] = {}
    _Recorder(program.module, set(program.module.graph.nodes), values).run(*program.inputs)
    for node, value in values.items():
        if node.op != "output":
            node.meta["val"] = _shape(value)


class _Recorder(fx.Interpreter):
    def __init__(
        self, module: fx.GraphModule, wanted: Collection[fx.Node], values: dict[fx.Node, Any], end: float = math.inf
    ) -> None:
        super().__init__(module)
        self._wanted, self._found, self._end = wanted, values, end

    def run_node(self, n: fx.Node) -> Any:
        if monotonic() > self._end:
            raise TimeoutError
        value = super().run_node(n)
        if n in self._wanted:
            self._found[n] = value
        return value


def _shape(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_shape(part) for part in value)
    return torch.empty_like(value, device="meta") if isinstance(value, Tensor) else value


def is_tensor(node: fx.Node) -> bool:
    """Return whether the value of a node is one tensor."""
    return isinstance(node.meta.get("val"), Tensor)
