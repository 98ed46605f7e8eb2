"""Split a joint query-key-value projection into one linear layer each: ``split_projections(program)``."""

from __future__ import annotations

import operator
from math import prod

from torch import fx

from hnas.export.graph.nodes import (
    LINEAR,
    aten,
    bound,
    call,
    constant,
    constant_value,
    edit,
    own_layer,
    prune,
    shape_of,
    substitute,
)
from hnas.export.graph.passes.reshapes import PERMUTATIONS, RESHAPES, permutation
from hnas.export.graph.program import Program

_Steps = list[tuple[fx.Node, int]]  # changes of shape, each with the dimension of its output that holds the parts


def split_projections(program: Program) -> Program:
    """Split a linear layer whose output features are separated into parts, one layer for each part.

    1. linear -> reshape that gives the parts a dimension of their own -> permutes, squeezes, unsqueezes -> unbind or
       select: for each part a linear layer with the part's rows of the weight, then the same permutes.
    2. A value between them is read elsewhere too, or a reshape mixes the parts with other dimensions: unchanged.
    """

    def rewrite(module: fx.GraphModule) -> int:
        found = [node for node in module.graph.nodes if own_layer(node, LINEAR)]
        return sum(_split(module, node) for node in found)

    return edit(program, "split_projections", rewrite)


def _split(module: fx.GraphModule, linear: fx.Node) -> bool:
    chain, tail = list[fx.Node](), linear
    while len(tail.users) == 1 and (user := next(iter(tail.users))).target in RESHAPES | PERMUTATIONS:
        chain.append(user)
        tail = user
    parts = _parts(tail)
    steps = _traced(chain, _dimension(tail)) if chain and parts else None
    if steps is None:
        return False
    ends = list(tail.users)
    for reader, index in parts:  # case 1
        substitute(reader, _part(module, linear, steps, reader, index))
    for end in ends:
        if not end._erased:
            prune(end)
    prune(tail)
    return True


def _parts(tail: fx.Node) -> list[tuple[fx.Node, int]]:
    """Return each reader of ``tail`` with the index of the part that it reads; none if a reader reads several."""
    users = list(tail.users)
    if len(users) == 1 and users[0].target is aten.unbind.int:
        readers = list(users[0].users)
        cuts = all(reader.target is operator.getitem for reader in readers)
        return [(reader, int(reader.args[1])) for reader in readers] if cuts else []  # type: ignore[arg-type]
    if not users or any(user.target is not aten.select.int or user.args[0] is not tail for user in users):
        return []
    if len({bound(user)["dim"] % len(shape_of(tail)) for user in users}) > 1:
        return []
    size = shape_of(tail)[_dimension(tail)]
    return [(user, int(bound(user)["index"]) % size) for user in users]


def _dimension(tail: fx.Node) -> int:
    """Return the dimension along which the parts are separated."""
    dim: int = bound(next(iter(tail.users)))["dim"]
    return dim % len(shape_of(tail))


def _traced(chain: list[fx.Node], dim: int) -> _Steps | None:
    """Return the steps after the linear layer, each with the dimension of the parts; None in case 2."""
    steps: _Steps = []
    for step in reversed(chain):
        steps.append((step, dim))
        before, after = shape_of(step.all_input_nodes[0]), shape_of(step)
        if step.target in PERMUTATIONS:
            dim = permutation(step)[dim]
        elif step is chain[0]:
            cut = prod(after[:dim]) == prod(before[:-1]) and prod(after[dim:]) == before[-1]
            return steps[::-1] if cut else None
        else:
            wide = [axis for axis, size in enumerate(before) if size > 1]
            if after[dim] == 1 or [before[axis] for axis in wide] != [size for size in after if size > 1]:
                return None
            dim = wide[sum(size > 1 for size in after[:dim])]
    return None


def _part(module: fx.GraphModule, linear: fx.Node, steps: _Steps, reader: fx.Node, index: int) -> fx.Node:
    """Insert before ``reader`` a linear layer and the steps that compute one part."""
    given, (first, dim) = bound(linear), steps[0]
    width = shape_of(linear)[-1] // shape_of(first)[dim]
    rows = slice(index * width, (index + 1) * width)
    stem = str(given["weight"].target).replace(".", "_").removesuffix("_weight")
    constants = [
        part and constant(module, reader, f"{stem}_{name}_{index}", constant_value(module, part)[rows].contiguous())
        for name, part in ((name, given[name]) for name in ("weight", "bias"))
    ]
    made = call(reader, linear.target, (given["input"], *constants), (*shape_of(linear)[:-1], width))
    for step, place in steps:
        shape = [size for axis, size in enumerate(shape_of(step)) if axis != place]
        if step.target in PERMUTATIONS:
            order = permutation(step)
            gone = order[place]
            kept = [axis - (axis > gone) for axis in order if axis != gone]
            made = call(reader, aten.permute.default, (made, kept), shape)
        else:
            made = call(reader, aten.reshape.default, (made, shape), shape)
    return made
