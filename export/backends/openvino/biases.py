"""Give products a bias where OpenVINO 2026.4 needs one: ``part_products(program)``, ``give_bias(module, product)``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from hnas.export.graph.nodes import (
    LINEAR,
    aten,
    bound,
    call,
    constant,
    constant_value,
    edit,
    is_floating,
    shape_of,
    substitute,
)
from hnas.export.graph.program import Program

FLAT = LINEAR | {aten.matmul.default, aten.mm.default}
TINY = 1e-30  # added to stop an unsafe fusion; numerically negligible
_MANY = 3  # products of one sum
_SUMMED = FLAT | {aten.addmm.default}


def has_no_bias(module: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether a node is a product of floating numbers without a bias, or with a zero one."""
    if node.target not in FLAT or not is_floating(node):
        return False
    bias = bound(node).get("bias")
    return bias is None or (bias.op == "get_attr" and not constant_value(module, bias).any())


def give_bias(module: fx.GraphModule, product: fx.Node) -> None:
    """Add a bias of 1e-30 to a product, far below the resolution of any sum.

    It alternates with 0, because a uniform bias is optimised away.
    """
    bias = torch.full(shape_of(product)[-1:], TINY)
    bias[::2] = 0.0
    following = product.next
    value = constant(module, following, "no_bias", bias.to(product.meta["val"].dtype))
    with module.graph.inserting_before(following):
        total = module.graph.call_function(aten.add.Tensor, (product, value))
    total.meta["val"] = product.meta["val"]
    product.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)


def part_products(program: Program) -> Program:
    """Give a bias to the products of a sum of at least three products.

    OpenVINO adds one product to the sum of the others inside its kernel, and ends with a segmentation fault when it
    opens a file in which the inputs of three such products are joins of activated linear layers of one input, even if
    only the last product has no bias. A bias prevents the fusion. ``addmm`` with a matrix to add becomes a product and
    a sum first.
    """

    def rewrite(module: fx.GraphModule) -> int:
        for node in [node for node in module.graph.nodes if _adds_matrix(node)]:
            _divide(node)
        biased = [product for product in _summed(module) if has_no_bias(module, product)]
        for product in biased:
            give_bias(module, product)
        return len(biased)

    return edit(program, "part_products", rewrite)


def _adds_matrix(node: fx.Node) -> bool:
    """Return whether a node is an ``addmm`` without factors that adds a matrix; one that adds a vector is a layer."""
    if node.target is not aten.addmm.default:
        return False
    parts = bound(node)
    return len(shape_of(parts["self"])) == 2 and parts["alpha"] == parts["beta"] == 1


def _divide(node: fx.Node) -> None:
    """Replace an ``addmm`` without factors by a product and a sum."""
    parts = bound(node)
    product = call(node, aten.mm.default, (parts["mat1"], parts["mat2"]))
    substitute(node, call(node, aten.add.Tensor, (parts["self"], product)))


def _summed(module: fx.GraphModule) -> dict[fx.Node, None]:
    """Return the products that are terms of a sum of many."""
    sums = [node for node in module.graph.nodes if _is_sum(node) and not any(map(_is_sum, node.users))]
    products = [[term for term in _terms(node) if term.target in _SUMMED] for node in sums]
    return dict.fromkeys(term for terms in products if len(terms) >= _MANY for term in terms)


def _is_sum(node: fx.Node) -> bool:
    return node.target is aten.add.Tensor and is_floating(node)


def _terms(node: Any) -> Iterator[fx.Node]:
    """Yield the terms of a sum; a sum that something else reads too is one term."""
    for part in node.all_input_nodes:
        if _is_sum(part) and len(part.users) == 1:
            yield from _terms(part)
        else:
            yield part
