"""Passes on the common graph: what every runtime would have to do, done once, counted and verified.

A pass takes a program and returns another that computes the same; it copies the graph and never touches its input.
Runtimes have rewrites of their own. Ours come first so that all of them, and the quantisers, see the same graph.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from export.activations import fuse_activations
from export.errors import ExportError
from export.graph import aten, bound, constant, constant_value, edit, shape_of, substitute
from export.program import Program

Pass = Callable[[Program], Program]

LIMIT = 1e-4  # largest error of a pass, as a part of the output's spread
SMALL = 1024  # elements; below that a second copy of a constant costs nothing
GROWTH = 1 << 16  # elements; a constant that outgrows what it is computed from is not worth more than this

_CONVOLUTIONS = {
    overload
    for packet in (aten.conv1d, aten.conv2d, aten.conv3d)
    for overload in (packet.default, packet.padding)  # padding: the one that takes "same"
}
_TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}
_DROPOUTS = {
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default,
}
_COPIES = {
    aten.alias.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.device,
    aten._to_copy.default,
    aten.type_as.default,
}
_RESHAPES = {
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
_NEUTRAL: dict[Any, int] = {aten.add.Tensor: 0, aten.sub.Tensor: 0, aten.mul.Tensor: 1, aten.div.Tensor: 1}
_PERMUTATIONS = {aten.permute.default, aten.transpose.int, aten.t.default}


def drop_dropout(program: Program) -> Program:
    """Remove what does nothing in eval mode.

    1. Dropout: goes. Dropout that stays active in eval mode (``F.dropout(x)``): left alone.
    2. clone, contiguous, alias, detach: go; every ``view`` becomes a ``reshape``, which takes any memory layout.
    3. A conversion to the type that the value has: goes. To another type: left alone.
    4. Adding 0 and multiplying or dividing by 1, type and shape unchanged: goes.
    5. Assertions on types, which capture leaves behind: go.
    """

    def rewrite(module: fx.GraphModule) -> int:
        fired = 0
        for node in list(module.graph.nodes):
            if node.target is aten._assert_tensor_metadata.default:
                module.graph.erase_node(node)
                fired += 1
            elif node.op == "call_function" and (_is_copy(node) or _is_neutral(node)):
                node.replace_all_uses_with(node.args[0])
                module.graph.erase_node(node)
                fired += 1
            elif node.target is aten.view.default:
                node.target = aten.reshape.default
        return fired

    return edit(program, "drop_dropout", rewrite)


def _is_copy(node: fx.Node) -> bool:
    if node.target in _DROPOUTS:
        return not bound(node)["train"]
    return node.target in _COPIES and _keeps_type(node)


def _is_neutral(node: fx.Node) -> bool:
    other = node.args[1] if node.target in _NEUTRAL else None
    return isinstance(other, int | float) and other == _NEUTRAL[node.target] and _keeps_type(node)


def _keeps_type(node: fx.Node) -> bool:
    source = node.args[0]
    before, after = (value.meta.get("val") if isinstance(value, fx.Node) else None for value in (source, node))
    return isinstance(before, Tensor) and isinstance(after, Tensor) and before.dtype == after.dtype


def fold_constants(program: Program) -> Program:
    """Compute once what does not depend on the inputs.

    1. A sub-graph of constants: its results become constants, the rest of it goes.
    2. A random operator: left alone, and all that reads it.
    3. A result of more than 65,536 elements, and more than it comes from: left alone; a file would have to carry it.
    4. Equal constants of at least 1,024 elements: one is kept. Small ones stay: they gain nothing, and quantisers want
       each layer's bias under a name of its own.
    5. Values that nothing reads: go.
    """

    def rewrite(module: fx.GraphModule) -> int:
        before = len(module.graph.nodes)
        module.graph.eliminate_dead_code()
        unread = before - len(module.graph.nodes)
        fired = unread + _evaluate(module)
        module.graph.eliminate_dead_code()  # the parts of what was just computed
        return fired + _unite(module)

    return edit(program, "fold_constants", rewrite)


def _evaluate(module: fx.GraphModule) -> int:
    values: dict[fx.Node, Any] = {}
    computed: list[fx.Node] = []
    for node in module.graph.nodes:
        if node.op == "get_attr":
            values[node] = constant_value(module, node)
        elif node.op == "call_function" and all(source in values for source in node.all_input_nodes) and _is_pure(node):
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: values[source])
            with torch.no_grad():
                result = node.target(*args, **kwargs)
            sources = [values[source] for source in node.all_input_nodes]
            known = sum(value.numel() for value in sources if isinstance(value, Tensor))
            if not isinstance(result, Tensor) or result.numel() <= max(GROWTH, known):
                values[node] = result
                computed.append(node)
    fired = 0
    for node in computed:
        if isinstance(values[node], Tensor) and any(user not in values for user in node.users):
            substitute(node, constant(module, node, node.name, values[node].detach().clone()))
            fired += 1
    return fired


def _is_pure(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload):
        return getattr(node.target, "__name__", "") == "getitem"
    random = torch.Tag.nondeterministic_seeded in node.target.tags
    return not random and not node.target._schema.is_mutable and bool(node.target._schema.returns)


def _unite(module: fx.GraphModule) -> int:
    first: dict[tuple[Any, ...], fx.Node] = {}
    fired = 0
    for node in [node for node in module.graph.nodes if node.op == "get_attr"]:
        value = constant_value(module, node).detach()
        if value.numel() < SMALL:
            continue
        content = hashlib.sha256(value.contiguous().reshape(-1).view(torch.uint8).numpy().data).digest()
        kept = first.setdefault((tuple(value.shape), value.dtype, content), node)
        if kept is not node:
            node.replace_all_uses_with(kept)
            module.graph.erase_node(node)
            fired += 1
    return fired


def fold_batchnorm(program: Program) -> Program:
    """Absorb each batch norm into the layer before it, computed in float64.

    1. conv -> bn, nothing else reads the conv: weights and bias are rescaled, bn goes. Any groups, any dimension.
    2. conv -> bn, something else reads the conv: left alone.
    3. bn first in its chain: left alone; there is nothing to fold into.
    4. linear -> bn on [N, features]: as 1. On [N, length, features], where bn works on the length: left alone.
    5. transposed conv -> bn: as 1; its output channels lie in dimension 1, by groups.
    6. bn on the moments of the batch, in eval mode too: left alone.
    7. The layer's weight is computed in the graph from the inputs: left alone.
    8. Layers that share a weight: each gets its own, rescaled by its own bn.
    """

    def rewrite(module: fx.GraphModule) -> int:
        norms = [node for node in module.graph.nodes if node.target is aten.batch_norm.default]
        return sum(_absorb(module, node) for node in norms)

    return edit(program, "fold_batchnorm", rewrite)


def _absorb(module: fx.GraphModule, norm: fx.Node) -> bool:
    layer, values = norm.args[0], bound(norm)
    if not isinstance(layer, fx.Node) or len(layer.users) != 1 or values["training"] or values["running_mean"] is None:
        return False
    is_linear = layer.target is aten.linear.default and len(shape_of(layer)) == 2
    if not is_linear and layer.target not in _CONVOLUTIONS | _TRANSPOSED:
        return False
    parts = bound(layer)
    affine = ("weight", "bias", "running_mean", "running_var")
    used = [parts["weight"], parts["bias"], *(values[name] for name in affine)]
    if any(part is not None and part.op != "get_attr" for part in used):
        return False
    dtype = constant_value(module, parts["weight"]).dtype
    absent = torch.zeros((), dtype=torch.float64)
    tensors = [absent if part is None else constant_value(module, part).double() for part in used]
    weight, bias, gamma, beta, mean, variance = tensors
    scale = torch.rsqrt(variance + values["eps"]) * (1.0 if values["weight"] is None else gamma)
    shift = (bias - mean) * scale + beta
    stem = str(parts["weight"].target).replace(".", "_").removesuffix("_weight")
    rescaled = _rescale(weight, scale, parts["groups"] if layer.target in _TRANSPOSED else None)
    named = (("weight", rescaled), ("bias", shift))
    folded = [constant(module, layer, f"{stem}_{name}", value.to(dtype)) for name, value in named]
    layer.kwargs = {name: value for name, value in layer.kwargs.items() if name not in ("weight", "bias")}
    layer.args = (layer.args[0], *folded, *layer.args[3:])
    substitute(norm, layer)
    return True


def _rescale(weight: Tensor, scale: Tensor, groups: int | None) -> Tensor:
    """Scale output channels: dimension 0, or for transposed convolutions dimension 1 within each of ``groups``."""
    if groups is None:
        return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    grouped = weight.reshape(groups, -1, *weight.shape[1:])
    return (grouped * scale.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape)


def merge_reshapes(program: Program) -> Program:
    """Make one shape change of several.

    1. reshape after reshape (also view, flatten, unflatten, squeeze, unsqueeze): one reshape.
    2. permute after permute (also transpose, t): one permute.
    3. A reshape to the shape that is there, a permute to the order that is there: goes.
    4. The inner one is read elsewhere too: it stays for the others, the outer one no longer needs it.
    5. reshape after permute: left alone.
    """

    def rewrite(module: fx.GraphModule) -> int:
        fired = 0
        for node in list(module.graph.nodes):
            if node.target in _RESHAPES:
                fired += _merge(module, node, _RESHAPES, aten.reshape.default, _reshape_argument)
            elif node.target in _PERMUTATIONS:
                fired += _merge(module, node, _PERMUTATIONS, aten.permute.default, _permute_argument)
        return fired

    return edit(program, "merge_reshapes", rewrite)


Argument = Callable[[fx.Node, fx.Node], list[int] | None]  # of one change from the first node to the second


def _merge(module: fx.GraphModule, node: fx.Node, family: set[Any], target: Any, argument: Argument) -> bool:
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
        order = [order[index] for index in _order(step)]
    return None if order == sorted(order) else order


def _order(node: fx.Node) -> list[int]:
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


PASSES: tuple[Pass, ...] = (drop_dropout, fold_constants, fold_batchnorm, fuse_activations, merge_reshapes)


def fuse(program: Program, passes: Sequence[Pass] = PASSES) -> Program:
    """Run the passes in order, each one verified against its input; ExportError names a pass that changed the outputs.

    Verified on the example inputs and on one seeded random draw (zeros as example would hide any error).
    """
    probes = [program.inputs, noise(program.inputs, seed=0)]
    expected = [program(*probe) for probe in probes]
    for function in passes:
        candidate = function(program)
        if candidate is program or candidate.fired[-1][1] == 0:
            program = replace(program, fired=candidate.fired)
            continue
        got = [candidate(*probe) for probe in probes]
        name = candidate.fired[-1][0]
        for want, have in zip(expected, got, strict=True):
            error = _relative_error(want, have)
            if not error <= LIMIT:
                raise ExportError(f"{name} changed the output: error {error:.1e} of its spread (limit {LIMIT:g})")
        program, expected = candidate, got
    return program


def noise(inputs: Sequence[Tensor], seed: int) -> tuple[Tensor, ...]:
    """Random inputs of the same mean and spread (1 where there is none); inputs that are not floating point stay."""
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for value in inputs:
        if value.is_floating_point():
            spread = value.double().std().item() if value.numel() > 1 else 0.0
            sample = torch.randn(value.shape, generator=generator, dtype=torch.float64) * (spread or 1.0)
            value = (sample + value.double().mean()).to(value.dtype)
        drawn.append(value)
    return tuple(drawn)


def _relative_error(expected: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """Largest error over the outputs, as a part of each one's spread; NaN where only one of the two is finite."""
    if [value.shape for value in expected] != [value.shape for value in got]:
        return float("inf")
    worst = 0.0
    for want, have in zip(expected, got, strict=True):
        finite = torch.isfinite(want)
        if want.dtype != have.dtype or not torch.equal(finite, torch.isfinite(have)):
            return float("inf")
        reference, difference = want[finite].double(), (have[finite].double() - want[finite].double()).abs()
        if reference.numel():
            spread = (reference.max() - reference.min()).item() or reference.abs().max().item() or 1.0
            worst = max(worst, difference.max().item() / spread)
    return worst
