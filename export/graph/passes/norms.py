"""Give layer norms the rank that a runtime has kernels for: ``flatten_norms(program)``."""

from math import prod

from torch import fx

from hnas.export.graph.nodes import aten, bound, call, edit, shape_of, substitute
from hnas.export.graph.program import Program


def flatten_norms(program: Program) -> Program:
    """Compute layer norms over the channels of an image on three dimensions.

    1. Layer norm over the last dimension of four or more: computed on [N, positions, channels], with a
       reshape before and after.
    2. Layer norm over several dimensions, or of at most three: unchanged.
    """

    def rewrite(module: fx.GraphModule) -> int:
        found = [node for node in module.graph.nodes if node.target is aten.layer_norm.default]
        # case 1; others are case 2
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
