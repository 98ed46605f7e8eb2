"""Move activations directly behind the layer before them: ``raise_activations(program)``."""

from itertools import chain

from torch import fx

from hnas.export.graph.nodes import LAYERS, aten, call, edit, own_layer, shape_of, substitute
from hnas.export.graph.passes.reshapes import PERMUTATIONS, RESHAPES
from hnas.export.graph.program import Program

_RISING = frozenset({aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default})
ACTIVATIONS = _RISING | {
    aten.hardsigmoid.default,
    aten.hardswish.default,
    aten.sigmoid.default,
    aten.tanh.default,
    aten.silu.default,
    aten.gelu.default,
    aten.leaky_relu.default,
    aten.elu.default,
}


def raise_activations(program: Program) -> Program:
    """Move each activation directly behind its layer, where every runtime computes both in one kernel.

    1. layer -> reshape or permute -> activation: becomes layer -> activation -> reshape or permute.
    2. layer -> max pool -> relu, relu6, hardtanh or clamp: moved before the pool, because these never decrease.
    3. layers -> concatenation -> activation: one activation for each layer.
    4. The layer, or a value between them, is read elsewhere too, or there is no layer: unchanged.
    """

    def rewrite(module: fx.GraphModule) -> int:
        found = [node for node in module.graph.nodes if node.target in ACTIVATIONS]
        return sum(_raise(node) for node in found)

    return edit(program, "raise_activations", rewrite)


def _raise(node: fx.Node) -> bool:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    layers = _layers_behind(source, node.target in _RISING)
    if not layers or source in layers:
        return False
    for layer in layers:
        (user,) = layer.users
        activation = call(user, node.target, (layer, *node.args[1:]), shape_of(layer))
        activation.kwargs = dict(node.kwargs)
        layer.replace_all_uses_with(activation, lambda reader, own=activation: reader is not own)  # type: ignore[misc]
    substitute(node, source)
    return True


def _layers_behind(node: fx.Node, rising: bool) -> list[fx.Node]:
    """Return the layers that reach ``node`` through reshapes, permutes, concatenations and, if ``rising``, max pools.

    Return no layers if there is any other operator between.
    """
    if own_layer(node, LAYERS):
        return [node]
    if len(node.users) != 1:  # case 4
        return []
    if node.target is aten.cat.default:  # case 3
        parts = node.args[0]
        assert isinstance(parts, list | tuple)
        found = [_layers_behind(part, rising) for part in parts if isinstance(part, fx.Node)]
        return list(chain(*found)) if all(found) and len(set(parts)) == len(parts) else []
    if node.target in RESHAPES | PERMUTATIONS or (rising and node.target is aten.max_pool2d.default):  # cases 1 and 2
        source = node.args[0]
        assert isinstance(source, fx.Node)
        return _layers_behind(source, rising)
    return []
