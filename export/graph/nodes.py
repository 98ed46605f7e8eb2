"""The few moves on an fx graph that every pass is made of."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx

from hnas.export.graph.program import Program, rebuild

aten = torch.ops.aten

CONVOLUTIONS = frozenset(
    overload
    for packet in (aten.conv1d, aten.conv2d, aten.conv3d)
    for overload in (packet.default, packet.padding)  # padding: the one that takes "same"
)
TRANSPOSED = frozenset({aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input})
LINEAR = frozenset({aten.linear.default})


def edit(program: Program, name: str, rewrite: Callable[[fx.GraphModule], int]) -> Program:
    """The program after ``rewrite``, which changes a copy of the graph and returns how often it fired.

    Weights are shared with the input program, so ``rewrite`` adds constants and never writes into one.
    """
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    result = graph.graph_copy(program.module.graph, mapping)
    graph.output(result)
    module = fx.GraphModule(program.module, graph)
    count = rewrite(module)
    fired = (*program.fired, (name, count))
    return replace(program, module=rebuild(module, module.graph) if count else program.module, fired=fired)


def bound(node: fx.Node) -> dict[str, Any]:
    """The arguments of an ATen call by name, defaults filled in."""
    assert isinstance(node.target, torch._ops.OpOverload)
    arguments = node.target._schema.arguments
    values = {argument.name: argument.default_value for argument in arguments}
    values.update(zip((argument.name for argument in arguments), node.args, strict=False))
    values.update(node.kwargs)
    return values


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape of a node's value."""
    return tuple(int(size) for size in node.meta["val"].shape)


def is_floating(node: fx.Node) -> bool:
    """True for a call that gives one floating point tensor."""
    value = node.meta.get("val")
    return node.op == "call_function" and isinstance(value, Tensor) and value.is_floating_point()


def substitute(node: fx.Node, other: fx.Node) -> None:
    """Let everything that reads ``node`` read ``other``, and remove ``node``."""
    node.replace_all_uses_with(other)
    node.graph.erase_node(node)


def constant_value(module: fx.GraphModule, node: fx.Node) -> Tensor:
    """The tensor that a get_attr node reads."""
    value: Any = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    assert isinstance(value, Tensor)
    return value


def constant(module: fx.GraphModule, before: fx.Node, name: str, value: Tensor) -> fx.Node:
    """A new constant, read just before ``before``; ``name`` gets a number when it is taken."""
    free, number = name, 0
    while hasattr(module, free):
        number += 1
        free = f"{name}_{number}"
    module.register_buffer(free, value)
    with module.graph.inserting_before(before):
        node = module.graph.get_attr(free)
    node.meta["val"] = value
    return node


def own_layer(node: Any, targets: frozenset[Any]) -> TypeGuard[fx.Node]:
    """True for a call of one of ``targets`` with constant weights that one operator reads: a pass may rewrite it."""
    if not isinstance(node, fx.Node) or node.target not in targets or len(node.users) != 1:
        return False
    parts = bound(node)
    return all(part is None or part.op == "get_attr" for part in (parts["weight"], parts["bias"]))


def weights(module: fx.GraphModule, layer: fx.Node) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer in float64; a bias that is absent is a zero without dimensions."""
    weight, bias = (bound(layer)[name] for name in ("weight", "bias"))
    zero = torch.zeros((), dtype=torch.float64)
    return constant_value(module, weight).double(), zero if bias is None else constant_value(module, bias).double()


def set_weights(module: fx.GraphModule, layer: fx.Node, weight: Tensor, bias: Tensor) -> None:
    """Give a layer new constants in the type that it has; layers that shared the old ones keep them."""
    old = bound(layer)["weight"]
    dtype = constant_value(module, old).dtype
    stem = str(old.target).replace(".", "_").removesuffix("_weight")
    named = (("weight", weight), ("bias", bias))
    new = [constant(module, layer, f"{stem}_{name}", value.to(dtype).contiguous()) for name, value in named]
    layer.kwargs = {name: value for name, value in layer.kwargs.items() if name not in ("weight", "bias")}
    layer.args = (layer.args[0], *new, *layer.args[3:])


def call(node: fx.Node, target: Any, args: tuple[Any, ...], shape: Sequence[int] | None = None) -> fx.Node:
    """A new call before ``node``; its value has the type of ``node``'s and ``shape`` (None: that of ``node``'s)."""
    with node.graph.inserting_before(node):
        made = node.graph.call_function(target, args)
    value = node.meta["val"]
    made.meta["val"] = value if shape is None else value.new_empty(tuple(shape))
    return made


def prune(node: fx.Node) -> None:
    """Remove ``node`` and what only it reads, as far as nothing else does."""
    left = [node]
    while left:
        part = left.pop()
        if part.op == "call_function" and not part.users and not part._erased:
            left.extend(part.all_input_nodes)
            part.graph.erase_node(part)
