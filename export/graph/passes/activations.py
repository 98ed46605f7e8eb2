"""Replace activations that are written as arithmetic by one operator each: ``fuse_activations(program)``.

A formula can be written in many ways, so no rule compares graphs literally. Each expression is brought into one of two
normal forms, a product ``c * f1 * f2 ...`` or a line ``a * x + b``. The rules compare normal forms.
"""

import math
from collections.abc import Callable
from typing import Any

from torch import fx

from hnas.export.graph.nodes import aten, bound, constant_value, edit, is_floating, prune, substitute
from hnas.export.graph.program import Program

_ADD = {aten.add.Tensor, aten.add.Scalar}
_SUBTRACT = {aten.sub.Tensor, aten.sub.Scalar}
_MULTIPLY = {aten.mul.Tensor, aten.mul.Scalar}
_DIVIDE = {aten.div.Tensor, aten.div.Scalar}
_RELU6 = {aten.relu6.default}
_BOUNDS = {aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default, aten.hardtanh.default, aten.relu.default}


def fuse_activations(program: Program) -> Program:
    """Replace each activation that is written as arithmetic by its operator.

    1. clamp(x, 0), clamp_min(x, 0) -> relu.
    2. clamp(x, 0, 6), hardtanh(x, 0, 6), or the two bounds in two calls -> relu6. Other bounds: unchanged.
    3. relu6(x + 3) / 6 -> hardsigmoid.
    4. x * relu6(x + 3) / 6, x * hardsigmoid(x) -> hardswish.
    5. x * sigmoid(x) -> silu. x * sigmoid(y), a gate: unchanged.
    6. x / 2 * (1 + erf(x / sqrt 2)) -> gelu;
       x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) -> gelu with the tanh approximation.
    7. A part of the formula is read elsewhere too: unchanged.
    8. Integers: unchanged.
    """

    def rewrite(module: fx.GraphModule) -> int:
        fired = 0
        for node in list(module.graph.nodes):
            if not is_floating(node):  # case 8
                continue
            for rule in _RULES:
                found = rule(module, node)
                if found is not None:
                    _replace(module, node, *found)
                    fired += 1
                    break
        return fired

    return edit(program, "fuse_activations", rewrite)


_Found = tuple[fx.Node, Any, dict[str, Any]]  # x, operator, keyword arguments


def _replace(module: fx.GraphModule, node: fx.Node, x: fx.Node, target: Any, kwargs: dict[str, Any]) -> None:
    with module.graph.inserting_before(node):
        activation = module.graph.call_function(target, (x,), kwargs)
    activation.meta = dict(node.meta)
    parts = node.all_input_nodes
    substitute(node, activation)
    for part in parts:  # values that only the formula read
        prune(part)


def _bounds(_: fx.GraphModule, node: fx.Node) -> _Found | None:
    """Cases 1 and 2."""
    if node.target not in _BOUNDS or node.target is aten.relu.default:
        return None
    x, low, high = _interval(node)
    inner = x
    if inner.target in _BOUNDS and len(inner.users) == 1:
        x, inner_low, inner_high = _interval(inner)
        low, high = max(low, inner_low), min(high, inner_high)
    if low != 0.0 or high not in (6.0, math.inf):
        return None
    return x, aten.relu6.default if high == 6.0 else aten.relu.default, {}


def _interval(node: fx.Node) -> tuple[fx.Node, float, float]:
    """Return the input of a clamp and its lower and upper bound."""
    values = bound(node)
    low = 0.0 if node.target is aten.relu.default else values.get("min", values.get("min_val"))
    high = values.get("max", values.get("max_val"))
    low = -math.inf if low is None else low
    return values["self"], float(low), math.inf if high is None else float(high)


def _hardsigmoid(module: fx.GraphModule, node: fx.Node) -> _Found | None:
    """Case 3."""
    factor, parts = _product(module, node)
    if not _near(factor, 1 / 6) or len(parts) != 1 or not _only_here(parts[0], _RELU6):
        return None
    scale, offset, x = _line(module, parts[0].args[0])
    return (x, aten.hardsigmoid.default, {}) if (scale, offset) == (1.0, 3.0) else None


def _hardswish(module: fx.GraphModule, node: fx.Node) -> _Found | None:
    """Case 4."""
    factor, parts = _product(module, node)
    for x, gate in _pairs(parts):
        if _near(factor, 1.0) and _only_here(gate, {aten.hardsigmoid.default}) and gate.args[0] is x:
            return x, aten.hardswish.default, {}
        if _near(factor, 1 / 6) and _only_here(gate, _RELU6) and _line(module, gate.args[0]) == (1.0, 3.0, x):
            return x, aten.hardswish.default, {}
    return None


def _silu(module: fx.GraphModule, node: fx.Node) -> _Found | None:
    """Case 5."""
    factor, parts = _product(module, node)
    for x, gate in _pairs(parts):
        if _near(factor, 1.0) and _only_here(gate, {aten.sigmoid.default}) and gate.args[0] is x:
            return x, aten.silu.default, {}
    return None


def _gelu(module: fx.GraphModule, node: fx.Node) -> _Found | None:
    """Case 6."""
    factor, parts = _product(module, node)
    if not _near(factor, 0.5):
        return None
    for x, gate in _pairs(parts):
        scale, offset, inner = _line(module, gate)
        if (scale, offset) != (1.0, 1.0) or inner is gate:
            continue
        if _only_here(inner, {aten.erf.default}):
            slope, shift, source = _line(module, inner.args[0])
            if _near(slope, math.sqrt(0.5)) and shift == 0.0 and source is x:
                return x, aten.gelu.default, {}
        if _only_here(inner, {aten.tanh.default}) and _is_tanh_argument(module, inner.args[0], x):
            return x, aten.gelu.default, {"approximate": "tanh"}
    return None


def _is_tanh_argument(module: fx.GraphModule, node: Any, x: fx.Node) -> bool:
    """Return True for sqrt(2 / pi) * (x + 0.044715 x^3), also with x factored out of the sum."""
    factor, parts = _product(module, node)
    if not _near(factor, math.sqrt(2 / math.pi)):
        return False
    if len(parts) == 1 and _only_here(parts[0], _ADD) and bound(parts[0]).get("alpha", 1) == 1:
        left, right = parts[0].args[0], parts[0].args[1]
        cube = right if left is x else left
        return x in (left, right) and isinstance(cube, fx.Node) and _is_power(module, cube, x, 0.044715, 3)
    for source, rest in _pairs(parts):
        scale, offset, square = _line(module, rest)
        if source is x and square is not rest and offset == 1.0:
            coefficient, factors = _product(module, square)
            if _near(scale * coefficient, 0.044715) and _degree(factors, x) == 2:
                return True
    return False


def _is_power(module: fx.GraphModule, node: fx.Node, x: fx.Node, factor: float, degree: int) -> bool:
    """Return True for ``factor`` * x^``degree``."""
    found, parts = _product(module, node)
    return _near(found, factor) and _degree(parts, x) == degree


def _degree(parts: list[fx.Node], x: fx.Node) -> int | None:
    """Return the n for which the product of ``parts`` is x^n; None where there is none."""
    total = 0
    for part in parts:
        if part is x:
            total += 1
        elif part.target is aten.pow.Tensor_Scalar and part.args[0] is x and part.args[1] in (2, 3):
            total += int(bound(part)["exponent"])
        else:
            return None
    return total


def _product(module: fx.GraphModule, node: Any, root: bool = True) -> tuple[float, list[fx.Node]]:
    """Return ``node`` as a scalar and factors; a product that is read elsewhere too is one factor (case 7)."""
    if not isinstance(node, fx.Node):
        return float(node), []
    value = _scalar(module, node)
    if value is not None:
        return value, []
    if node.target not in _MULTIPLY | _DIVIDE or (not root and len(node.users) > 1):
        return 1.0, [node]
    factor, parts = _product(module, node.args[0], False)
    other, more = _product(module, node.args[1], False)
    if node.target in _MULTIPLY:
        return factor * other, parts + more
    return (factor / other, parts) if not more and other else (1.0, [node])


def _line(module: fx.GraphModule, node: Any) -> tuple[float, float, Any]:
    """Return (a, b, x) for ``node`` = a * x + b, and (1, 0, node) for any other node or in case 7."""
    if not isinstance(node, fx.Node) or node.op != "call_function" or len(node.users) > 1:
        return 1.0, 0.0, node
    if node.target in _ADD | _SUBTRACT and bound(node).get("alpha", 1) == 1:
        left, right = (_scalar(module, value) for value in node.args[:2])
        sign = -1.0 if node.target in _SUBTRACT else 1.0
        if right is not None:
            scale, offset, x = _line(module, node.args[0])
            return scale, offset + sign * right, x
        if left is not None and sign > 0:
            scale, offset, x = _line(module, node.args[1])
            return scale, offset + left, x
    elif node.target in _MULTIPLY | _DIVIDE:
        factor, parts = _product(module, node)
        if len(parts) == 1 and parts[0] is not node:
            scale, offset, x = _line(module, parts[0])
            return scale * factor, offset * factor, x
    return 1.0, 0.0, node


def _scalar(module: fx.GraphModule, value: Any) -> float | None:
    """Return ``value`` as a number if it is a number or a scalar constant, else None."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, fx.Node) and value.op == "get_attr":
        tensor = constant_value(module, value)
        return float(tensor) if tensor.ndim == 0 else None
    return None


def _pairs(parts: list[fx.Node]) -> list[tuple[fx.Node, fx.Node]]:
    return [(parts[0], parts[1]), (parts[1], parts[0])] if len(parts) == 2 else []


def _only_here(node: fx.Node, targets: set[Any]) -> bool:
    return node.target in targets and len(node.users) == 1


def _near(value: float, wanted: float) -> bool:
    return math.isclose(value, wanted, rel_tol=1e-4)  # constants are often written with five digits


_Rule = Callable[[fx.GraphModule, fx.Node], _Found | None]
_RULES: tuple[_Rule, ...] = (_bounds, _hardsigmoid, _hardswish, _silu, _gelu)
