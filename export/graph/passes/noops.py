"""Remove operators that do nothing in eval mode: ``drop_dropout(program)``."""

from typing import Any

from torch import Tensor, fx

from hnas.export.graph.nodes import aten, bound, edit
from hnas.export.graph.program import Program

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
_NEUTRAL: dict[Any, int] = {aten.add.Tensor: 0, aten.sub.Tensor: 0, aten.mul.Tensor: 1, aten.div.Tensor: 1}


def drop_dropout(program: Program) -> Program:
    """Remove operators that do nothing in eval mode.

    1. Dropout: removed. Dropout that stays active in eval mode (``F.dropout(x)``): unchanged.
    2. clone, contiguous, alias, detach: removed. Each ``view`` becomes a ``reshape``, which accepts any memory layout.
    3. A conversion to the type that the value already has: removed. A conversion to another type: unchanged.
    4. Adding or subtracting the number 0, multiplying or dividing by the number 1, with the same type: removed.
    5. Type assertions that capture leaves behind: removed.
    """

    def rewrite(module: fx.GraphModule) -> int:
        fired = 0
        for node in list(module.graph.nodes):
            if node.target is aten._assert_tensor_metadata.default:  # case 5
                module.graph.erase_node(node)
                fired += 1
            elif node.op == "call_function" and (_is_copy(node) or _is_neutral(node)):
                node.replace_all_uses_with(node.args[0])
                module.graph.erase_node(node)
                fired += 1
            elif node.target is aten.view.default:  # case 2
                node.target = aten.reshape.default
        return fired

    return edit(program, "drop_dropout", rewrite)


def _is_copy(node: fx.Node) -> bool:
    if node.target in _DROPOUTS:  # case 1
        return not bound(node)["train"]
    return node.target in _COPIES and _keeps_type(node)  # cases 2 and 3


def _is_neutral(node: fx.Node) -> bool:
    other = node.args[1] if node.target in _NEUTRAL else None
    return isinstance(other, int | float) and other == _NEUTRAL[node.target] and _keeps_type(node)  # case 4


def _keeps_type(node: fx.Node) -> bool:
    source = node.args[0]
    before, after = (value.meta.get("val") if isinstance(value, fx.Node) else None for value in (source, node))
    return isinstance(before, Tensor) and isinstance(after, Tensor) and before.dtype == after.dtype
