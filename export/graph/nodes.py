"""Edit and query fx graphs. Passes consist of these functions, and every pass returns the result of ``edit``."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx

from hnas.export.graph.program import Program, rebuild

aten = torch.ops.aten

CONVOLUTION_RANKS: dict[Any, int] = {aten.conv1d.default: 1, aten.conv2d.default: 2, aten.conv3d.default: 3}
CONVOLUTIONS = frozenset(
    overload
    for packet in (aten.conv1d, aten.conv2d, aten.conv3d)
    for overload in (packet.default, packet.padding)  # "padding" is the overload that accepts the word "same"
)
TRANSPOSED = frozenset({aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input})
LINEAR = frozenset({aten.linear.default})
LAYERS = CONVOLUTIONS | TRANSPOSED | LINEAR


def edit(program: Program, name: str, rewrite: Callable[[fx.GraphModule], int]) -> Program:
    """Return ``program`` after ``rewrite``, and record under ``name`` how often the rewrite fired.

    rewrite: changes a copy of the graph in place and returns a count. The copy shares its weights with ``program``, so
        ``rewrite`` may add constants but must never change an existing constant in place.

    Example::

        def drop_relus(program):
            def rewrite(module):
                found = [node for node in module.graph.nodes if node.target is aten.relu.default]
                for node in found:
                    substitute(node, node.args[0])
                return len(found)

            return edit(program, "drop_relus", rewrite)
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
    """Return the arguments of an ATen call by name, defaults included."""
    assert isinstance(node.target, torch._ops.OpOverload)
    arguments = node.target._schema.arguments
    values = {argument.name: argument.default_value for argument in arguments}
    values.update(zip((argument.name for argument in arguments), node.args, strict=False))
    values.update(node.kwargs)
    return values


def per_dimension(value: Any, rank: int) -> list[int]:
    """Return an argument as one number per dimension; torch accepts one number for all dimensions."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    return values * rank if len(values) == 1 else values


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Return the shape of a node's value."""
    return tuple(int(size) for size in node.meta["val"].shape)


def is_floating(node: fx.Node) -> bool:
    """Return True for a call that returns one floating-point tensor."""
    value = node.meta.get("val")
    return node.op == "call_function" and isinstance(value, Tensor) and value.is_floating_point()


def substitute(node: fx.Node, other: fx.Node) -> None:
    """Redirect every reader of ``node`` to ``other``, and remove ``node``."""
    node.replace_all_uses_with(other)
    node.graph.erase_node(node)


def constant_value(module: fx.GraphModule, node: fx.Node) -> Tensor:
    """Return the tensor that a get_attr node reads."""
    value: Any = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    assert isinstance(value, Tensor)
    return value


def constant(module: fx.GraphModule, before: fx.Node, name: str, value: Tensor) -> fx.Node:
    """Insert the constant ``value`` before the node ``before``, and return its node.

    name: the name of the constant; it gets a number if the module has that name already.
    """
    free, number = name, 0
    while hasattr(module, free):
        number += 1
        free = f"{name}_{number}"
    module.register_buffer(free, value)
    with module.graph.inserting_before(before):
        node = module.graph.get_attr(free)
    node.meta["val"] = value
    return node


def has_constant_weights(layer: fx.Node) -> bool:
    """Return True for a layer whose weight and bias (if any) are constants."""
    parts = bound(layer)
    return all(part is None or part.op == "get_attr" for part in (parts["weight"], parts["bias"]))


def own_layer(node: Any, targets: frozenset[Any]) -> TypeGuard[fx.Node]:
    """Return True for a call of one of ``targets`` that a pass may rewrite: constant weights, and a single reader."""
    if not isinstance(node, fx.Node) or node.target not in targets or len(node.users) != 1:
        return False
    return has_constant_weights(node)


def weights(module: fx.GraphModule, layer: fx.Node) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a layer in float64; the bias is a scalar zero where the layer has none."""
    weight, bias = (bound(layer)[name] for name in ("weight", "bias"))
    zero = torch.zeros((), dtype=torch.float64)
    return constant_value(module, weight).double(), zero if bias is None else constant_value(module, bias).double()


def set_weights(module: fx.GraphModule, layer: fx.Node, weight: Tensor, bias: Tensor) -> None:
    """Replace the weight and bias of a layer, cast to its type. Other layers that share the old constants keep them."""
    old = bound(layer)["weight"]
    dtype = constant_value(module, old).dtype
    stem = str(old.target).replace(".", "_").removesuffix("_weight")
    named = (("weight", weight), ("bias", bias))
    new = [constant(module, layer, f"{stem}_{name}", value.to(dtype).contiguous()) for name, value in named]
    layer.kwargs = {name: value for name, value in layer.kwargs.items() if name not in ("weight", "bias")}
    layer.args = (layer.args[0], *new, *layer.args[3:])


def rescale(module: fx.GraphModule, layer: fx.Node, scale: Tensor, shift: Tensor) -> None:
    """Replace ``layer(x)`` by ``scale * layer(x) + shift``, by changing its weights.

    scale, shift: float64, one number for each output channel [C], or a scalar.
    """
    weight, bias = weights(module, layer)
    axis = 1 if layer.target in TRANSPOSED else 0
    groups = bound(layer)["groups"] if axis else 1
    channels = weight.shape[axis] * groups
    grouped = weight.reshape(groups, -1, *weight.shape[1:]) if axis else weight
    factors = scale.expand(channels).reshape(*(groups, 1) if axis else (), -1, *[1] * (weight.ndim - 1 - axis))
    set_weights(module, layer, (grouped * factors).reshape(weight.shape), (bias * scale + shift).expand(channels))


def call(node: fx.Node, target: Any, args: tuple[Any, ...], shape: Sequence[int] | None = None) -> fx.Node:
    """Insert a call of ``target`` before ``node``, without keyword arguments, and return it.

    shape: shape of its value; None for the shape of ``node``. The type is that of ``node``.
    """
    with node.graph.inserting_before(node):
        made = node.graph.call_function(target, args)
    value = node.meta["val"]
    made.meta["val"] = value if shape is None else value.new_empty(tuple(shape))
    return made


def prune(node: fx.Node) -> None:
    """Remove ``node`` if nothing reads it. Then do the same for the values that it was computed from."""
    left = [node]
    while left:
        part = left.pop()
        if part.op == "call_function" and not part.users and not part._erased:
            left.extend(part.all_input_nodes)
            part.graph.erase_node(part)
