"""The few moves on an fx graph that every pass is made of."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from export.program import Program, rebuild

aten = torch.ops.aten


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
