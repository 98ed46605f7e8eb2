"""Define formulas of activations and other functions of each element.

They are exact to a few units in the last place in float32, where the textbook form would cancel or overflow.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from hnas.export.backends.tflite.writer.formulas.registry import formula
from hnas.export.backends.tflite.writer.lowering import arguments

# x * P(x^2) / Q(x^2) is erf(x) up to 4 (the coefficients of Eigen for float32), highest power first
_ERF_ABOVE: tuple[float, ...] = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
)
_ERF_ABOVE += (-7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02)
_ERF_BELOW: tuple[float, ...] = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
)
_ERF_BELOW += (-1.42647390514189e-02,)


def _factors(node: fx.Node) -> bool:
    given = arguments(node)
    return any(given[name] != 1 for name in ("alpha", "scale", "input_scale"))


@formula("elu", when=_factors)
def _elu(x: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Tensor:
    below = torch.nn.functional.elu(torch.clamp(x, max=0.0) * input_scale)
    return (torch.relu(x) + alpha * below) * scale


@formula("selu")
def _selu(x: Tensor) -> Tensor:
    return _elu(x, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


@formula("celu")
def _celu(x: Tensor, alpha: float = 1.0) -> Tensor:
    return _elu(x, alpha, 1.0, 1.0 / alpha)


@formula("log1p")
def _log1p(x: Tensor) -> Tensor:
    rounded = 1.0 + x
    return torch.log(rounded) + (x - (rounded - 1.0)) / rounded  # the second term is what the sum has lost


@formula("expm1")
def _expm1(x: Tensor) -> Tensor:
    return torch.tanh(x * 0.5) * (torch.exp(x) + 1.0)


@formula("softplus")
def _softplus(x: Tensor, beta: float = 1.0) -> Tensor:
    z = x if beta == 1 else x * beta
    value = torch.relu(z) + _log1p(torch.exp(-torch.abs(z)))
    return value if beta == 1 else value / beta


@formula("log_sigmoid")
def _log_sigmoid(x: Tensor) -> Tensor:
    return -_softplus(-x)


@formula("mish")
def _mish(x: Tensor) -> Tensor:
    grown = torch.exp(torch.clamp(x, max=20.0))  # tanh(softplus(20)) is 1 in float32
    ratio = grown * (grown + 2.0)
    return x * (ratio / (ratio + 2.0))


@formula("log_softmax", "_log_softmax")
def _log_softmax(x: Tensor, dim: int) -> Tensor:
    shifted = x - torch.amax(x, [dim], True)
    return shifted - torch.log(torch.sum(torch.exp(shifted), [dim], True))


@formula("softshrink")
def _softshrink(x: Tensor, lambd: float = 0.5) -> Tensor:
    return torch.relu(x - lambd) - torch.relu(-x - lambd)


@formula("glu")
def _glu(x: Tensor, dim: int = -1) -> Tensor:
    value, gate = torch.chunk(x, 2, dim)
    return value * torch.sigmoid(gate)


@formula("erf")
def _erf(x: Tensor) -> Tensor:
    x = torch.clamp(x, -4.0, 4.0)
    square = x * x
    return x * (_polynomial(square, _ERF_ABOVE) / _polynomial(square, _ERF_BELOW))


@formula("erfc")
def _erfc(x: Tensor) -> Tensor:
    return 1.0 - _erf(x)


def _polynomial(x: Tensor, factors: tuple[float, ...]) -> Tensor:
    value = x * factors[0] + factors[1]
    for factor in factors[2:]:
        value = value * x + factor
    return value


@formula("log2")
def _log2(x: Tensor) -> Tensor:
    return torch.log(x) * (1 / math.log(2))


@formula("log10")
def _log10(x: Tensor) -> Tensor:
    return torch.log(x) * (1 / math.log(10))


@formula("exp2")
def _exp2(x: Tensor) -> Tensor:
    return torch.pow(2.0, x)


@formula("tan")
def _tan(x: Tensor) -> Tensor:
    return torch.sin(x) / torch.cos(x)


@formula("asin")
def _asin(x: Tensor) -> Tensor:
    return torch.atan2(x, torch.sqrt((1.0 - x) * (1.0 + x)))


@formula("acos")
def _acos(x: Tensor) -> Tensor:
    return torch.atan2(torch.sqrt((1.0 - x) * (1.0 + x)), x)


@formula("atan")
def _atan(x: Tensor) -> Tensor:
    return torch.atan2(x, torch.ones_like(x))


@formula("sinh")
def _sinh(x: Tensor) -> Tensor:
    grown = _expm1(torch.abs(x))
    return torch.sign(x) * 0.5 * (grown + grown / (grown + 1.0))


@formula("cosh")
def _cosh(x: Tensor) -> Tensor:
    return (torch.exp(x) + torch.exp(-x)) * 0.5


@formula("asinh")
def _asinh(x: Tensor) -> Tensor:
    size = torch.abs(x)
    return torch.sign(x) * _log1p(size + size * size / (torch.sqrt(size * size + 1.0) + 1.0))


@formula("acosh")
def _acosh(x: Tensor) -> Tensor:
    return torch.log(x + torch.sqrt((x - 1.0) * (x + 1.0)))


@formula("atanh")
def _atanh(x: Tensor) -> Tensor:
    return 0.5 * (_log1p(x) - _log1p(-x))


@formula("trunc")
def _trunc(x: Tensor) -> Tensor:
    return torch.sign(x) * torch.floor(torch.abs(x))


@formula("frac")
def _frac(x: Tensor) -> Tensor:
    return x - _trunc(x)


@formula("fmod")
def _fmod(x: Tensor, other: Tensor | float) -> Tensor:
    return x - _trunc(x / other) * other


@formula("floor_divide", when=lambda node: not _is_whole(node))
def _floor_divide(x: Tensor, other: Tensor | float) -> Tensor:
    return torch.round((x - torch.remainder(x, other)) / other)


@formula("div.Tensor_mode", "div.Scalar_mode", when=lambda node: arguments(node)["rounding_mode"] is not None)
def _rounded_quotient(x: Tensor, other: Any, rounding_mode: str) -> Tensor:
    if rounding_mode == "floor":
        return torch.floor_divide(x, other)
    if x.is_floating_point() or isinstance(other, float):
        return _trunc(x / other)
    divisor = other if isinstance(other, Tensor) else torch.full_like(x, other)
    return torch.sign(x) * torch.sign(divisor) * torch.floor_divide(torch.abs(x), torch.abs(divisor))


@formula("round.decimals")
def _round(x: Tensor, decimals: int) -> Tensor:
    factor = 10.0**decimals
    return torch.round(x * factor) / factor


@formula("hypot")
def _hypot(x: Tensor, other: Tensor) -> Tensor:
    return torch.sqrt(x * x + other * other)


@formula("logaddexp")
def _logaddexp(x: Tensor, other: Tensor) -> Tensor:
    return torch.maximum(x, other) + _log1p(torch.exp(-torch.abs(x - other)))


@formula("rrelu_with_noise", "rrelu", when=lambda node: not arguments(node)["training"])
def _rrelu(x: Tensor, lower: float, upper: float) -> Tensor:
    return torch.nn.functional.leaky_relu(x, (lower + upper) / 2)


@formula("isnan")
def _isnan(x: Tensor) -> Tensor:
    return torch.ne(x, x)


@formula("isinf")
def _isinf(x: Tensor) -> Tensor:
    return torch.eq(torch.abs(x), math.inf)


@formula("isfinite")
def _isfinite(x: Tensor) -> Tensor:
    return torch.lt(torch.abs(x), math.inf)


def _bounded_by_tensors(node: fx.Node) -> bool:
    given = arguments(node)
    return isinstance(given.get("min"), fx.Node) or isinstance(given.get("max"), fx.Node)


@formula("clamp", "clamp_min", "clamp_max", when=_bounded_by_tensors)
def _clamp(x: Tensor, min: Tensor | None = None, max: Tensor | None = None) -> Tensor:  # noqa: A002
    x = x if min is None else torch.maximum(x, min)
    return x if max is None else torch.minimum(x, max)


@formula("masked_fill")
def _masked_fill(x: Tensor, mask: Tensor, value: Tensor | float) -> Tensor:
    return torch.where(mask, value, x)


@formula("one_hot")
def _one_hot(x: Tensor, num_classes: int = -1) -> Tensor:
    return torch.eq(x.unsqueeze(-1), torch.arange(num_classes)).to(torch.int64)


def _is_whole(node: fx.Node) -> bool:
    return not node.meta["val"].is_floating_point()


@formula("square", when=_is_whole)
def _square(x: Tensor) -> Tensor:
    return x * x


@formula("abs", when=_is_whole)
def _abs(x: Tensor) -> Tensor:
    return torch.maximum(x, -x)


@formula("sign", "sgn", when=_is_whole)
def _sign(x: Tensor) -> Tensor:
    return torch.clamp(x, -1, 1)


@formula("relu", when=_is_whole)
def _relu(x: Tensor) -> Tensor:
    return torch.clamp(x, min=0)


def _of_bools(node: fx.Node) -> bool:
    return node.meta["val"].dtype == torch.bool


@formula("bitwise_not")
def _bitwise_not(x: Tensor) -> Tensor:
    return torch.logical_not(x) if x.dtype == torch.bool else -1 - x


@formula("bitwise_and", "__and__", when=_of_bools)
def _and(x: Tensor, other: Tensor) -> Tensor:
    return torch.logical_and(x, other)


@formula("bitwise_or", "__or__", when=_of_bools)
def _or(x: Tensor, other: Tensor) -> Tensor:
    return torch.logical_or(x, other)


@formula("bitwise_xor", "__xor__", when=_of_bools)
def _xor(x: Tensor, other: Tensor) -> Tensor:
    return torch.logical_xor(x, other)
