"""Merge consecutive reshapes and permutes: ``merge_reshapes(program)``."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import fx

from hnas.export.graph.nodes import aten, bound, call, edit, shape_of, substitute
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
    """Replace several changes of shape or order by one.

    1. reshape after reshape (also view, flatten, unflatten, squeeze, unsqueeze): one reshape.
    2. permute after permute (also transpose, t): one permute. A permute that only moves dimensions of size 1: a
       reshape.
    3. A reshape to the same shape, or a permute to the same order: removed.
    4. The first of the two is read elsewhere too: kept for that reader. The second reads the input of the first.
    5. reshape after permute that only adds or drops dimensions of size 1: moved before the permute, where it may merge
       with other reshapes. Any other reshape: unchanged, but the permute before it moves no dimensions of size 1.
    """

    def rewrite(module: fx.GraphModule) -> int:
        fired = 0
        while found := sum(_simplify(module, node) for node in list(module.graph.nodes) if not node._erased):
            fired += found  # the next round may merge what one change leaves
        return fired

    return edit(program, "merge_reshapes", rewrite)


def _simplify(module: fx.GraphModule, node: fx.Node) -> bool:
    """Apply one case of ``merge_reshapes`` to ``node``, and return whether any applied."""
    if node.target in PERMUTATIONS and _moves_nothing(node):  # case 2
        node.target, node.args, node.kwargs = aten.reshape.default, (node.args[0], list(shape_of(node))), {}
        return True
    if node.target in RESHAPES:
        return _exchange(node) or _merge(module, node, RESHAPES, aten.reshape.default, _reshape_argument)
    if node.target in PERMUTATIONS:
        return _merge(module, node, PERMUTATIONS, aten.permute.default, _permute_argument)
    return False


def _moves_nothing(node: fx.Node) -> bool:
    """Return True for a permute that changes the order of dimensions, but not of the elements in memory."""
    sizes = shape_of(node.all_input_nodes[0])
    wide = [axis for axis in permutation(node) if sizes[axis] > 1]
    return wide == sorted(wide) and permutation(node) != list(range(len(sizes)))


def _exchange(node: fx.Node) -> bool:
    """Case 5: change the permute before the reshape ``node``; the value of ``node`` stays the same."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if source.target not in PERMUTATIONS or len(source.users) != 1:
        return False
    (origin,) = source.all_input_nodes
    sizes = shape_of(origin)
    wide = [axis for axis in permutation(source) if sizes[axis] > 1]
    if [size for size in shape_of(node) if size > 1] == [sizes[axis] for axis in wide]:
        return _reshape_first(node, source, wide)
    return _keep_units_in_place(node, source, wide)


def _reshape_first(node: fx.Node, source: fx.Node, wide: list[int]) -> bool:
    """Replace permute -> reshape by reshape -> permute; ``wide`` are the permuted axes of more than one element."""
    (origin,) = source.all_input_nodes
    sizes, shape = shape_of(origin), shape_of(node)
    places = [place for place, size in enumerate(shape) if size > 1]
    before, turned = list(shape), list(range(len(shape)))
    for place, axis, sorted_axis in zip(places, wide, sorted(wide), strict=True):
        before[place], turned[place] = sizes[sorted_axis], places[sorted(wide).index(axis)]
    if turned == sorted(turned):
        return False  # the permute moves nothing; case 2 turns it into a reshape next
    inner = call(source, aten.reshape.default, (origin, before), before)
    node.target, node.args, node.kwargs = aten.permute.default, (inner, turned), {}
    node.graph.erase_node(source)
    return True


def _keep_units_in_place(node: fx.Node, source: fx.Node, wide: list[int]) -> bool:
    """Replace the permute ``source`` by one that leaves each axis of size 1 where it is."""
    (origin,) = source.all_input_nodes
    sizes, left = shape_of(origin), iter(wide)
    kept = [axis if size == 1 else next(left) for axis, size in enumerate(sizes)]
    if kept == permutation(source):
        return False
    inner = call(source, aten.permute.default, (origin, kept), [sizes[axis] for axis in kept])
    node.target, node.args, node.kwargs = aten.reshape.default, (inner, list(shape_of(node))), {}
    node.graph.erase_node(source)
    return True


_Argument = Callable[[fx.Node, fx.Node], list[int] | None]  # the argument of one change from the first to the second


def _merge(module: fx.GraphModule, node: fx.Node, family: set[Any], target: Any, argument: _Argument) -> bool:
    """Cases 1 to 4: replace ``node`` and the operator of the same family before it by one call of ``target``."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    origin = source.args[0] if source.target in family else source
    assert isinstance(origin, fx.Node)
    wanted = argument(origin, node)
    if wanted is None:  # case 3
        substitute(node, origin)
    elif origin is not source:
        node.target, node.args, node.kwargs = target, (origin, wanted), {}
    else:
        return False
    if source.op == "call_function" and not source.users:  # case 4 where there are users
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
    """Return the order of the input's dimensions in the output of a permute, transpose or t."""
    rank = len(shape_of(node))
    order = list(range(rank))
    if node.target is aten.permute.default:
        dims: Iterable[int] = bound(node)["dims"]
        return [dim % rank for dim in dims]
    values = {"dim0": 0, "dim1": -1, **bound(node)}  # t has no arguments and swaps its two dimensions
    first, second = values["dim0"] % rank, values["dim1"] % rank
    order[first], order[second] = order[second], order[first]
    return order
