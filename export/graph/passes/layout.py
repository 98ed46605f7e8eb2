"""Reshapes and permutes: fewer of them, and operators in the layout that a runtime has kernels for."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, fx

from hnas.export.graph.nodes import (
    LINEAR,
    aten,
    bound,
    call,
    constant,
    constant_value,
    edit,
    is_floating,
    own_layer,
    prune,
    shape_of,
    substitute,
)
from hnas.export.graph.program import Program

RESHAPES = {
    aten.reshape.default,
    aten.view.default,
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
}
PERMUTATIONS = {aten.permute.default, aten.transpose.int, aten.t.default}


def merge_reshapes(program: Program) -> Program:
    """Make one shape change of several.

    1. reshape after reshape (also view, flatten, unflatten, squeeze, unsqueeze): one reshape.
    2. permute after permute (also transpose, t): one permute. One that moves dimensions of one element only: a reshape.
    3. A reshape to the shape that is there, a permute to the order that is there: goes.
    4. The inner one is read elsewhere too: it stays for the others, the outer one no longer needs it.
    5. reshape after permute that only adds or drops dimensions of one element: before it, where it meets others. Any
       other: left alone, but the permute before it moves no dimensions of one element.
    """

    def rewrite(module: fx.GraphModule) -> int:
        fired = 0
        while found := sum(_simplified(module, node) for node in list(module.graph.nodes) if not node._erased):
            fired += found  # what one change leaves may be merged by the next
        return fired

    return edit(program, "merge_reshapes", rewrite)


def _simplified(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether one of the cases of ``merge_reshapes`` applied to ``node``."""
    if node.target in PERMUTATIONS and _moves_nothing(node):
        node.target, node.args, node.kwargs = aten.reshape.default, (node.args[0], list(shape_of(node))), {}
        return True
    if node.target in RESHAPES:
        return _exchange(node) or _merge(module, node, RESHAPES, aten.reshape.default, _reshape_argument)
    if node.target in PERMUTATIONS:
        return _merge(module, node, PERMUTATIONS, aten.permute.default, _permute_argument)
    return False


def _moves_nothing(node: fx.Node) -> bool:
    """True for a permute after which the elements lie as before, though not where there is nothing but one element."""
    sizes = shape_of(node.all_input_nodes[0])
    wide = [axis for axis in permutation(node) if sizes[axis] > 1]
    return wide == sorted(wide) and permutation(node) != list(range(len(sizes)))


def _exchange(node: fx.Node) -> bool:
    """Case 5 of ``merge_reshapes``, for the reshape ``node``; what it gives stays the same."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if source.target not in PERMUTATIONS or len(source.users) != 1:
        return False
    (origin,) = source.all_input_nodes
    sizes, shape, order = shape_of(origin), shape_of(node), permutation(source)
    wide = [axis for axis in order if sizes[axis] > 1]
    if [size for size in shape if size > 1] == [sizes[axis] for axis in wide]:
        places = [place for place, size in enumerate(shape) if size > 1]
        before, turned = list(shape), list(range(len(shape)))
        for place, axis, sorted_axis in zip(places, wide, sorted(wide), strict=True):
            before[place], turned[place] = sizes[sorted_axis], places[sorted(wide).index(axis)]
        if turned == sorted(turned):
            return False  # the permute moves nothing, and is a reshape next
        inner = call(source, aten.reshape.default, (origin, before), before)
        node.target, node.args, node.kwargs = aten.permute.default, (inner, turned), {}
        node.graph.erase_node(source)
        return True
    left = iter(wide)
    kept = [axis if size == 1 else next(left) for axis, size in enumerate(sizes)]
    if kept == order:
        return False
    inner = call(source, aten.permute.default, (origin, kept), [sizes[axis] for axis in kept])
    node.target, node.args, node.kwargs = aten.reshape.default, (inner, list(shape)), {}
    node.graph.erase_node(source)
    return True


_Argument = Callable[[fx.Node, fx.Node], list[int] | None]  # of one change from the first node to the second


def _merge(module: fx.GraphModule, node: fx.Node, family: set[Any], target: Any, argument: _Argument) -> bool:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    origin = source.args[0] if source.target in family else source
    assert isinstance(origin, fx.Node)
    wanted = argument(origin, node)
    if wanted is None:  # nothing changes in the end
        substitute(node, origin)
    elif origin is not source:
        node.target, node.args, node.kwargs = target, (origin, wanted), {}
    else:
        return False
    if source.op == "call_function" and not source.users:
        module.graph.erase_node(source)
    return True


def _reshape_argument(origin: fx.Node, node: fx.Node) -> list[int] | None:
    return None if shape_of(origin) == shape_of(node) else list(shape_of(node))


def _permute_argument(origin: fx.Node, node: fx.Node) -> list[int] | None:
    order = list(range(len(shape_of(origin))))
    chain = [node] if node.args[0] is origin else [node.args[0], node]
    for step in chain:
        assert isinstance(step, fx.Node)
        order = [order[index] for index in permutation(step)]
    return None if order == sorted(order) else order


def permutation(node: fx.Node) -> list[int]:
    """The permutation that a permute, transpose or t makes."""
    rank = len(shape_of(node))
    order = list(range(rank))
    if node.target is aten.permute.default:
        dims: Iterable[int] = bound(node)["dims"]
        return [dim % rank for dim in dims]
    values = {"dim0": 0, "dim1": -1, **bound(node)}  # t swaps the two it has
    first, second = values["dim0"] % rank, values["dim1"] % rank
    order[first], order[second] = order[second], order[first]
    return order


_TO_CHANNELS_FIRST = (0, 3, 1, 2)
_ELEMENTWISE = frozenset(
    getattr(aten, name).default
    for name in ("relu", "relu6", "hardsigmoid", "hardswish", "sigmoid", "tanh", "silu", "gelu", "leaky_relu", "elu")
) | {aten.clamp.default, aten.hardtanh.default, aten.neg.default, aten.abs.default, aten.exp.default, aten.sqrt.default}
_ARITHMETIC = frozenset({aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor})


def cancel_permutes(program: Program) -> Program:
    """Remove a permute and its inverse that have only arithmetic between them, which then works in the other order.

    1. permute -> activations, arithmetic with numbers and constants -> inverse permute: both permutes go.
    2. The same where several permuted maps come together: all of the permutes go.
    3. A map comes in that is not permuted, or an operator that tells dimensions apart: left alone.
    4. Something between is read elsewhere: left alone. The first permute is: it stays for the others.
    """
    return edit(program, "cancel_permutes", lambda module: _raise_permutes(module, linears=False))


def pointwise_convolutions(program: Program) -> Program:
    """Compute linear layers on images with channels last as 1x1 convolutions with channels first.

    1. [N, H, W, C] -> linear, activations, arithmetic with constants -> permute to [N, C, H, W]: the permute goes
       before them, where it may cancel with another one; linear becomes a convolution.
    2. More than one map would have to be permuted instead, or a larger one: left alone.
    3. A linear layer that no such permute follows: left alone.
    """
    return edit(program, "pointwise_convolutions", lambda module: _raise_permutes(module, linears=True))


@dataclass
class _Region:
    """What a permute would move through: the leaves where it ends up, and what stands between."""

    order: tuple[int, ...]
    linears: bool
    inner: list[fx.Node]
    leaves: list[fx.Node]

    def grow(self, module: fx.GraphModule, node: fx.Node) -> None:
        if len(node.users) != 1 or not self._passes(module, node):
            self.leaves.append(node)
            return
        self.inner.append(node)
        for source in node.all_input_nodes:
            if source.op != "get_attr":
                self.grow(module, source)

    def _passes(self, module: fx.GraphModule, node: fx.Node) -> bool:
        if self.linears and self.order == _TO_CHANNELS_FIRST and own_layer(node, LINEAR):
            return True
        if node.target not in _ELEMENTWISE | _ARITHMETIC or not is_floating(node):
            return False
        for source in node.all_input_nodes:
            if source.op == "get_attr":
                fits = constant_value(module, source).ndim <= len(self.order)
            else:
                fits = shape_of(source) == shape_of(node)
            if not fits:
                return False
        return True

    def cancels(self, leaf: fx.Node) -> bool:
        """True for a permute that the region's undoes."""
        if leaf.target not in PERMUTATIONS or len(shape_of(leaf)) != len(self.order):
            return False
        order = permutation(leaf)
        return [order[index] for index in self.order] == sorted(self.order)


def _raise_permutes(module: fx.GraphModule, *, linears: bool) -> int:
    fired = 0
    for node in list(module.graph.nodes):
        if node._erased or node.target not in PERMUTATIONS:
            continue
        source = node.args[0]
        assert isinstance(source, fx.Node)
        region = _Region(tuple(permutation(node)), linears, [], [])
        region.grow(module, source)
        if not region.inner:
            continue
        moved = [leaf for leaf in set(region.leaves) if not region.cancels(leaf)]
        worth = any(inner.target in LINEAR for inner in region.inner) if linears else True
        small = all(prod(shape_of(leaf)) <= prod(shape_of(node)) for leaf in moved)
        if worth and small and len(moved) <= (1 if linears else 0):
            substitute(node, _permuted(module, source, region, node, {}))
            prune(source)
            fired += 1
    return fired


def _permuted(
    module: fx.GraphModule, node: fx.Node, region: _Region, before: fx.Node, made: dict[fx.Node, fx.Node]
) -> fx.Node:
    """``node`` in the order of the region, with everything that it is computed from."""
    if node in made:
        return made[node]
    shape = [shape_of(node)[index] for index in region.order] if node.op != "get_attr" else []
    if node.op == "get_attr":
        value = _reordered(constant_value(module, node), region.order)
        made[node] = constant(module, before, f"{str(node.target).replace('.', '_')}_permuted", value)
    elif node not in region.inner:
        source = node.args[0] if region.cancels(node) else None
        made[node] = source if isinstance(source, fx.Node) else _permute(before, node, region.order, shape)
    elif node.target in LINEAR:
        parts = bound(node)
        weight = constant_value(module, parts["weight"])
        stem = str(parts["weight"].target).replace(".", "_")
        kernel = constant(module, before, f"{stem}_kernel", weight.reshape(*weight.shape, 1, 1))
        inputs = (_permuted(module, parts["input"], region, before, made), kernel, parts["bias"])
        made[node] = call(before, aten.conv2d.default, inputs, shape)
    else:
        args = fx.map_arg(node.args, lambda source: _permuted(module, source, region, before, made))
        made[node] = call(before, node.target, args, shape)
        made[node].kwargs = dict(node.kwargs)
    return made[node]


def _permute(before: fx.Node, node: fx.Node, order: tuple[int, ...], shape: list[int]) -> fx.Node:
    return call(before, aten.permute.default, (node, list(order)), shape)


def _reordered(value: Tensor, order: tuple[int, ...]) -> Tensor:
    """A constant that is broadcast, permuted as what it meets."""
    if value.ndim == 0:
        return value
    return value.reshape(*[1] * (len(order) - value.ndim), *value.shape).permute(order).contiguous()


def flatten_norms(program: Program) -> Program:
    """Give layer norms over channels of an image three dimensions.

    1. layer norm over the last dimension of four or more: on [N, positions, channels], reshaped before and after.
    2. Over several dimensions, or of at most three: left alone.
    """

    def rewrite(module: fx.GraphModule) -> int:
        found = [node for node in module.graph.nodes if node.target is aten.layer_norm.default]
        found = [node for node in found if len(shape_of(node)) > 3 and len(bound(node)["normalized_shape"]) == 1]
        for node in found:
            shape = shape_of(node)
            flat = (shape[0], prod(shape[1:-1]), shape[-1])
            tokens = call(node, aten.reshape.default, (node.args[0], list(flat)), flat)
            normed = call(node, aten.layer_norm.default, (tokens, *node.args[1:]), flat)
            normed.kwargs = dict(node.kwargs)
            substitute(node, call(normed.next, aten.reshape.default, (normed, list(shape)), shape))
        return len(found)

    return edit(program, "flatten_norms", rewrite)
