"""Help to lower operators: keep the values so far, read constants, broadcast, and add operators to the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from hnas.export.backends.tflite.writer.layout import Moves, Order, Placed, channels_last_order, plain
from hnas.export.backends.tflite.writer.model import Model, Operator, Value, constant_tensor
from hnas.export.graph.nodes import bound, constant_value, shape_of
from hnas.export.graph.program import Program

Range = tuple[float, float]
Lowering = Callable[["Graph", fx.Node], "Placed | list[Placed]"]

# Operators that read and write channels last.
_SPATIAL = {"conv1d", "conv2d", "conv_transpose2d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"}
_SPATIAL |= {"upsample_nearest2d", "upsample_bilinear2d"}
# Operators that accept any order of axes. They use the order that their readers prefer.
FLUID = {"add", "sub", "mul", "div", "relu", "relu6", "hardswish", "hardsigmoid", "sigmoid", "tanh", "silu", "gelu"}
FLUID |= {"cat", "batch_norm", "constant_pad_nd", "pad", "clamp", "hardtanh", "leaky_relu", "slice"}


class Unsupported(Exception):
    """Signal an operator, or a use of an operator, that the writer does not support. The text names the operator."""


class Graph:
    """Hold the values of the program as tensors of the model that is written."""

    def __init__(self, program: Program, ranges: Mapping[str, Range]) -> None:
        self.model = Model()
        self.moves = Moves(self.model)
        self.module, self._ranges = program.module, ranges
        self.values: dict[fx.Node, Placed | list[Placed]] = {}
        self._wanted: dict[fx.Node, Order | None] = {}

    def placed(self, node: Any) -> Placed:
        """Return the value of a node, or of a number."""
        if isinstance(node, fx.Node):
            found = self.values[node]
            assert isinstance(found, Placed)
            return found
        return Placed(constant_tensor(np.array(node, np.float32)), ())

    def at(self, node: Any, order: Order) -> Value:
        """Return the tensor of a node with its axes in ``order``."""
        return self.moves.moved(self.placed(node), order)

    def constant(self, node: fx.Node | None, what: str) -> NDArray[Any]:
        """Return the array of a constant node. Raise Unsupported if the node is not a constant.

        what: the use of the constant, for the error.
        """
        value = self.placed(node).value if node is not None else None
        if value is None or value.data is None:
            raise Unsupported(f"{what} that is computed in the graph")
        return np.asarray(self.moves.moved(self.placed(node), plain(len(value.shape))).data)

    def add(
        self,
        kind: str,
        inputs: Sequence[Value | None],
        shape: Sequence[int],
        like: fx.Node | Range | Value | None = None,
        **options: Any,
    ) -> Value:
        """Add an operator and return its only output.

        kind: name of the operator in the schema.
        shape: shape of the output, in the order of its axes in memory.
        like: the source of the output's range: a node of the program, another value, or a range.
        options: options of the operator, by their names in the schema.
        """
        made = Value(tuple(int(size) for size in shape), range=self.range_of(like))
        self.model.operators.append(Operator(kind, list(inputs), [made], options))
        return made

    def range_of(self, like: fx.Node | Range | Value | None) -> Range | None:
        """Return the observed range of a value; None if it was not observed."""
        if isinstance(like, fx.Node):
            return self._ranges.get(like.name)
        return like.range if isinstance(like, Value) else like

    def wanted(self, node: fx.Node) -> Order:
        """Return the order of axes that the readers of ``node`` prefer."""
        rank = len(shape_of(node))
        return self._asked(node, 8) or plain(rank)

    def _asked(self, node: fx.Node, depth: int) -> Order | None:
        if node not in self._wanted:
            self._wanted[node] = None
            for user in node.users:
                name = operator_name(user)
                found = None
                if name in _SPATIAL and user.args[0] is node:
                    found = channels_last_order(len(shape_of(node)))
                elif name in FLUID and depth and shape_of(user)[1:2] == shape_of(node)[1:2]:
                    found = self._asked(user, depth - 1)
                if found is not None and len(found) == len(shape_of(node)):
                    self._wanted[node] = found
                    break
        return self._wanted[node]

    def together(self, node: fx.Node, operands: Sequence[Any]) -> tuple[list[Value], Order]:
        """Return the operands of an elementwise operator as tensors that broadcast as in the program, and their order.

        The order is that of the largest operand. Among equally large ones, an operand in the wanted order is preferred.
        """
        rank = len(shape_of(node))
        known = [self.placed(operand) for operand in operands]
        full = [each for each in known if each.value.data is None and len(each.order) == rank]
        wanted = self.wanted(node)
        largest = max(full, key=lambda each: (np.prod(each.value.shape), each.order == wanted), default=None)
        order = wanted if largest is None else largest.order
        return [self.spread(each, rank, order) for each in known], order

    def spread(self, placed: Placed, rank: int, order: Order) -> Value:
        """Return the tensor with ``rank`` axes in ``order``, perhaps without leading axes of 1."""
        shape = (1,) * (rank - len(placed.order)) + placed.shape
        if placed.value.data is None and len(placed.order) < rank and order == plain(rank):
            return self.moves.moved(placed, plain(len(placed.order)))
        value = self.moves.moved(self.moves.reshaped(placed, shape, order), order)
        if value.data is None:
            return value
        first = next((axis for axis, size in enumerate(value.shape) if size != 1), rank)
        return constant_tensor(value.data.reshape(value.shape[first:] or (1,)))

    def fold(self, node: fx.Node) -> Placed | None:
        """Return the constant value of a node whose inputs are all constant, else None."""
        sources = [self.values.get(source) for source in node.all_input_nodes]
        known = [each.value.data is not None for each in sources if isinstance(each, Placed)]
        if node.target in _SHAPES_ALONE:
            known = [True] * len(sources)
        if len(known) != len(sources) or not all(known):
            return None

        def tensor(source: fx.Node) -> Tensor:
            placed = self.values[source]
            if source.op == "get_attr":
                return constant_value(self.module, source)
            assert isinstance(placed, Placed)
            if placed.value.data is None:
                return torch.empty(shape_of(source))
            return torch.from_numpy(np.array(self.moves.moved(placed, plain(len(placed.order))).data))

        assert callable(node.target)
        args, kwargs = fx.map_arg((node.args, node.kwargs), tensor)
        result = node.target(*args, **kwargs)
        return read_constant(result) if isinstance(result, Tensor) else None


_SHAPES_ALONE = {torch.ops.aten.zeros_like.default, torch.ops.aten.ones_like.default}


def read_constant(tensor: Tensor) -> Placed:
    """Return a constant of the program as a placed value."""
    return Placed(constant_tensor(tensor.detach().contiguous().numpy()), plain(tensor.ndim))


def operator_name(node: fx.Node) -> str:
    """Return the ATen name of a call without its overload; "" for any other node."""
    if node.op != "call_function":
        return ""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target).split(".")[1]
    return getattr(node.target, "__name__", str(node.target))


def arguments(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of a call by name."""
    return bound(node)
