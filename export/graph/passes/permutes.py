"""Move permutes through arithmetic until they cancel: ``cancel_permutes`` and ``pointwise_convolutions``."""

from dataclasses import dataclass
from math import prod

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
from hnas.export.graph.passes.reshapes import PERMUTATIONS, permutation
from hnas.export.graph.program import Program

_TO_CHANNELS_FIRST = (0, 3, 1, 2)
_ELEMENTWISE = frozenset(
    getattr(aten, name).default
    for name in ("relu", "relu6", "hardsigmoid", "hardswish", "sigmoid", "tanh", "silu", "gelu", "leaky_relu", "elu")
) | {aten.clamp.default, aten.hardtanh.default, aten.neg.default, aten.abs.default, aten.exp.default, aten.sqrt.default}
_ARITHMETIC = frozenset({aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor})


def cancel_permutes(program: Program) -> Program:
    """Remove a permute and its inverse that have only arithmetic between them. The arithmetic runs in the other order.

    1. permute -> activations, arithmetic with numbers and constants -> inverse permute: both permutes are removed.
    2. The same where several permuted maps are combined: all of these permutes are removed.
    3. One of the maps is not permuted, or an operator depends on the order of dimensions: unchanged.
    4. A value between them is read elsewhere too: unchanged. The first permute is read elsewhere too: it is kept for
       that reader.
    """
    return edit(program, "cancel_permutes", lambda module: _raise_permutes(module, linears=False))


def pointwise_convolutions(program: Program) -> Program:
    """Compute linear layers on images with channels last as 1x1 convolutions with channels first.

    1. [N, H, W, C] -> linear, activations, arithmetic with constants -> permute to [N, C, H, W]: the permute moves
       before them, where it may cancel with another permute; linear becomes a convolution.
    2. More than one map, or a larger map, would need a permute instead: unchanged.
    3. A linear layer without such a permute after it: unchanged.
    """
    return edit(program, "pointwise_convolutions", lambda module: _raise_permutes(module, linears=True))


@dataclass
class _Region:
    """Hold the nodes ``inner`` that a permute to ``order`` would pass, and the ``leaves`` behind which it would end."""

    order: tuple[int, ...]
    linears: bool
    inner: list[fx.Node]
    leaves: list[fx.Node]

    def grow(self, module: fx.GraphModule, node: fx.Node) -> None:
        """Add ``node`` and everything that it is computed from, up to nodes that the permute cannot pass."""
        if len(node.users) != 1 or not self._passes(module, node):  # cases 3 and 4 of ``cancel_permutes``
            self.leaves.append(node)
            return
        self.inner.append(node)
        for source in node.all_input_nodes:
            if source.op != "get_attr":
                self.grow(module, source)

    def _passes(self, module: fx.GraphModule, node: fx.Node) -> bool:
        """Return True where ``node`` computes the same on permuted inputs."""
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
        """Return True where ``leaf`` is the inverse permute."""
        if leaf.target not in PERMUTATIONS or len(shape_of(leaf)) != len(self.order):
            return False
        order = permutation(leaf)
        return [order[index] for index in self.order] == sorted(self.order)

    def saves_time(self, permute: fx.Node) -> bool:
        """Return True where moving ``permute`` to the leaves leaves fewer permutes, or converts a linear layer."""
        if not self.inner:
            return False
        moved = [leaf for leaf in set(self.leaves) if not self.cancels(leaf)]
        if not self.linears:  # cases 1 and 2 of ``cancel_permutes``
            return not moved
        small = all(prod(shape_of(leaf)) <= prod(shape_of(permute)) for leaf in moved)
        converts = any(inner.target in LINEAR for inner in self.inner)  # case 3 of ``pointwise_convolutions``
        return converts and small and len(moved) <= 1  # case 2 of ``pointwise_convolutions``


def _raise_permutes(module: fx.GraphModule, *, linears: bool) -> int:
    """Move every permute where that saves time, through linear layers too if ``linears``; return how many moved."""
    fired = 0
    for node in list(module.graph.nodes):
        if node._erased or node.target not in PERMUTATIONS:
            continue
        source = node.args[0]
        assert isinstance(source, fx.Node)
        region = _Region(tuple(permutation(node)), linears, [], [])
        region.grow(module, source)
        if region.saves_time(node):
            substitute(node, _permuted(module, source, region, node, {}))
            prune(source)
            fired += 1
    return fired


def _permuted(
    module: fx.GraphModule, node: fx.Node, region: _Region, before: fx.Node, made: dict[fx.Node, fx.Node]
) -> fx.Node:
    """Insert ``node``, and everything it is computed from, in the order of the region; ``made`` holds the copies."""
    if node in made:
        return made[node]
    shape = [shape_of(node)[index] for index in region.order] if node.op != "get_attr" else []
    if node.op == "get_attr":
        value = _reordered(constant_value(module, node), region.order)
        made[node] = constant(module, before, f"{str(node.target).replace('.', '_')}_permuted", value)
    elif node not in region.inner:
        source = node.args[0] if region.cancels(node) else None
        made[node] = source if isinstance(source, fx.Node) else _permute(before, node, region.order, shape)
    elif node.target in LINEAR:  # case 1 of ``pointwise_convolutions``
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
    """Return a constant that is broadcast, permuted like the value that it is combined with."""
    if value.ndim == 0:
        return value
    return value.reshape(*[1] * (len(order) - value.ndim), *value.shape).permute(order).contiguous()
