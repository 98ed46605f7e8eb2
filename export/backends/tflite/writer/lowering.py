"""Help to lower operators: keep the values so far, read constants, broadcast, and add operators to the model."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
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
_FLUID = {"add", "sub", "mul", "div", "relu", "relu6", "hardswish", "hardsigmoid", "sigmoid", "tanh", "silu", "gelu"}
_FLUID |= {"cat", "batch_norm", "constant_pad_nd", "pad", "clamp", "hardtanh", "leaky_relu", "slice", "prelu", "elu"}
# Operators that broadcast their operands.
BROADCASTING = {"add", "sub", "mul", "div", "maximum", "minimum", "where", "eq", "ne", "lt", "le", "gt", "ge"}

# The types that the kernels of the runtime take, beside float32.
_WHOLE = frozenset({"int32", "int64"})
_EVERY = _WHOLE | {"bool"}
_TYPES: dict[str, frozenset[str]] = {
    **dict.fromkeys(("ADD", "SUB", "MUL", "FLOOR_MOD", "MAXIMUM", "MINIMUM", "NEG", "CUMSUM", "TOPK_V2"), _WHOLE),
    **dict.fromkeys(("SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD"), _WHOLE),
    **dict.fromkeys(("LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL", "SPLIT"), _WHOLE),
    **dict.fromkeys(("RESHAPE", "TRANSPOSE", "SLICE", "STRIDED_SLICE", "CONCATENATION", "GATHER", "TILE"), _EVERY),
    **dict.fromkeys(("BROADCAST_TO", "REVERSE_V2", "PAD", "PADV2", "SELECT_V2", "CAST", "EQUAL", "NOT_EQUAL"), _EVERY),
    **dict.fromkeys(("LOGICAL_AND", "LOGICAL_OR", "LOGICAL_NOT", "REDUCE_ANY", "REDUCE_ALL"), frozenset({"bool"})),
    **dict.fromkeys(("ARG_MAX", "ARG_MIN"), frozenset({"int32", "bool"})),
    **dict.fromkeys(("ABS", "SIGN", "FLOOR_DIV"), frozenset({"int32"})),
}


class Unsupported(Exception):
    """Signal an operator, or a use of an operator, that the writer does not support. The text names the operator.

    fallback: the converter that takes the program instead.
    """

    fallback = "litert-torch"


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
        return Placed(constant_tensor(np.array(node)), ())

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
        like: the source of the output's range and type: a node of the program, another value, or a range.
        options: options of the operator, by their names in the schema. ``dtype`` is the type of the output, if
            ``like`` has another.

        Raises:
            Unsupported: the runtime has no kernel for the type of an input.
        """
        dtype = options.pop("dtype", None) or _type_of(like)
        made = Value(tuple(int(size) for size in shape), dtype, range=self.range_of(like))
        operator = Operator(kind, list(inputs), [made], options)
        for value in operator.activations:
            if value.dtype != "float32" and value.dtype not in _TYPES.get(kind, ()):
                raise Unsupported(f"{kind} in {value.dtype}")
        self.model.operators.append(operator)
        return made

    def cast(self, value: Value, dtype: str, like: fx.Node | None = None) -> Value:
        """Return the tensor in another type. A number becomes True unless it is 0."""
        if value.dtype == dtype:
            return value
        if value.data is not None:
            return constant_tensor(value.data.astype(dtype))
        kinds = {"inDataType": _type_number(value.dtype), "outDataType": _type_number(dtype)}
        return self.add("CAST", [value], value.shape, like or value, dtype=dtype, **kinds)

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
                elif name in _FLUID and depth and shape_of(user)[1:2] == shape_of(node)[1:2]:
                    found = self._asked(user, depth - 1)
                if found is not None and len(found) == len(shape_of(node)):
                    self._wanted[node] = found
                    break
        return self._wanted[node]

    def together(
        self, node: fx.Node, operands: Sequence[Any], dtype: torch.dtype | None = None
    ) -> tuple[list[Value], Order]:
        """Return the operands of an elementwise operator as tensors that broadcast as in the program, and their order.

        The order is that of the largest operand. Among equally large ones, an operand in the wanted order is preferred.

        dtype: the type in which the operator computes; None for that of its result.
        """
        rank = len(shape_of(node))
        known = [self.placed(operand) for operand in operands]
        full = [each for each in known if each.value.data is None and len(each.order) == rank]
        wanted = self.wanted(node)
        largest = max(full, key=lambda each: (np.prod(each.value.shape), each.order == wanted), default=None)
        order = wanted if largest is None else largest.order
        kind = type_name(dtype or node.meta["val"].dtype)
        values = [self.cast(self.spread(each, rank, order), kind) for each in known]
        if all(len(value.shape) < rank for value in values):  # the rank is that of a constant
            values = [value if value.data is None else _of_rank(value, rank) for value in values]
        return values, order

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

    def fold(self, node: fx.Node) -> Placed | list[Placed] | None:
        """Return the constant value of a node whose inputs are all constant, or its values, else None."""
        sources = [self.values.get(source) for source in node.all_input_nodes]
        known = [each.value.data is not None for each in sources if isinstance(each, Placed)]
        if _reads_shapes_alone(node):
            known = [True] * len(sources)
        if len(known) != len(sources) or not all(known) or not _is_repeatable(node):
            return None

        def tensor(source: fx.Node) -> Tensor:
            placed = self.values[source]
            if source.op == "get_attr":
                return constant_value(self.module, source)
            assert isinstance(placed, Placed)
            if placed.value.data is None:
                return torch.empty(shape_of(source), dtype=source.meta["val"].dtype)
            return torch.from_numpy(np.array(self.moves.moved(placed, plain(len(placed.order))).data))

        assert callable(node.target)
        args, kwargs = fx.map_arg((node.args, node.kwargs), tensor)
        result = node.target(*args, **kwargs)
        if isinstance(result, list | tuple) and all(isinstance(each, Tensor) for each in result):
            return [read_constant(each) for each in result]
        return read_constant(result) if isinstance(result, Tensor) else None


def _of_rank(value: Value, rank: int) -> Value:
    assert value.data is not None
    return constant_tensor(value.data.reshape((1,) * (rank - value.data.ndim) + value.data.shape))


_SHAPES_ALONE = {"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"}


def _reads_shapes_alone(node: fx.Node) -> bool:
    """Return whether the result of a call depends on the shapes of its inputs only, and not on their values."""
    return operator_name(node) in _SHAPES_ALONE


def _is_repeatable(node: fx.Node) -> bool:
    """Return whether a call gives the same result each time. Random operators do not."""
    return not isinstance(node.target, torch._ops.OpOverload) or (
        torch.Tag.nondeterministic_seeded not in node.target.tags
    )


def is_fixed(node: fx.Node, known: Container[fx.Node] | None = None) -> bool:
    """Return whether a node has the same value for all inputs of the program, so that ``fold`` computes it.

    known: the nodes before ``node`` that are fixed; None to look at them again.
    """
    if known is not None and node.op == "call_function" and not _reads_shapes_alone(node):
        return _is_repeatable(node) and all(each in known for each in node.all_input_nodes)
    pending, seen = [node], set[fx.Node]()
    while pending:
        part = pending.pop()
        if part in seen or part.op == "get_attr" or _reads_shapes_alone(part):
            continue
        if part.op != "call_function" or not _is_repeatable(part):
            return False
        seen.add(part)
        pending += part.all_input_nodes
    return True


def type_name(dtype: torch.dtype) -> str:
    """Return the name of a type, such as int64."""
    return str(dtype).removeprefix("torch.")


def _type_number(dtype: str) -> int:
    """Return the number of a type in the schema."""
    return {"float32": 0, "int32": 2, "int64": 4, "bool": 6}[dtype]


def _type_of(like: fx.Node | Range | Value | None) -> str:
    if isinstance(like, fx.Node):
        value = like.meta["val"]
        return type_name((value[0] if isinstance(value, tuple | list) else value).dtype)
    return like.dtype if isinstance(like, Value) else "float32"


def read_constant(tensor: Tensor) -> Placed:
    """Return a constant of the program as a placed value."""
    return Placed(constant_tensor(tensor.detach().contiguous().numpy()), plain(tensor.ndim))


def operator_name(node: fx.Node) -> str:
    """Return the ATen name of a call without its overload; "" for any other node.

    Operators of another name space have it before their name, as ``prims::sum``.
    """
    if node.op != "call_function":
        return ""
    if isinstance(node.target, torch._ops.OpOverload):
        space, name, *_ = str(node.target).split(".")
        return name if space == "aten" else f"{space}::{name}"
    return getattr(node.target, "__name__", str(node.target))


def arguments(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of a call by name."""
    return bound(node)
