"""Define formulas of matrix products and attention, in terms of products of two tensors of equal rank."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from hnas.export.backends.tflite.writer.formulas.registry import formula
from hnas.export.backends.tflite.writer.lowering import arguments, is_fixed


def _unlike(node: fx.Node) -> bool:
    """Return whether a product has a vector, or operands of different ranks and no constant matrix."""
    ranks = [len(each.meta["val"].shape) for each in node.args[:2]]  # type: ignore[union-attr]
    if min(ranks) < 2 or len(set(ranks)) == 1:
        return min(ranks) < 2
    return ranks[1] != 2 or not is_fixed(node.args[1])  # type: ignore[arg-type]


@formula("matmul", when=_unlike)
def _matmul(x: Tensor, other: Tensor) -> Tensor:
    left = x.unsqueeze(0) if x.ndim == 1 else x
    right = other.unsqueeze(1) if other.ndim == 1 else other
    rank = max(left.ndim, right.ndim)
    left, right = (each.reshape((1,) * (rank - each.ndim) + each.shape) for each in (left, right))
    value = torch.matmul(left, right)
    return value.squeeze(-2) if x.ndim == 1 and other.ndim > 1 else value.reshape(_shape(x, other, value))


def _shape(x: Tensor, other: Tensor, value: Tensor) -> list[int]:
    shape = list(value.shape)
    if other.ndim == 1:
        shape = shape[:-1]
    return shape[:-1] if x.ndim == 1 else shape


@formula("linear", when=lambda node: not is_fixed(arguments(node)["weight"]))
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    value = torch.matmul(x, weight.transpose(0, 1))
    return value if bias is None else value + bias


def _is_general(node: fx.Node) -> bool:
    given = arguments(node)
    fits = is_fixed(given["mat2"]) and is_fixed(given["self"]) and given["self"].meta["val"].ndim == 1
    return (given["alpha"], given["beta"]) != (1, 1) or not fits


@formula("addmm", when=_is_general)
def _addmm(x: Tensor, mat1: Tensor, mat2: Tensor, beta: float, alpha: float) -> Tensor:
    return _sum(x, beta, torch.mm(mat1, mat2), alpha)


@formula("baddbmm")
def _baddbmm(x: Tensor, batch1: Tensor, batch2: Tensor, beta: float, alpha: float) -> Tensor:
    return _sum(x, beta, torch.bmm(batch1, batch2), alpha)


@formula("addbmm")
def _addbmm(x: Tensor, batch1: Tensor, batch2: Tensor, beta: float, alpha: float) -> Tensor:
    return _sum(x, beta, torch.sum(torch.bmm(batch1, batch2), 0), alpha)


def _sum(x: Tensor, beta: float, product: Tensor, alpha: float) -> Tensor:
    product = product if alpha == 1 else product * alpha
    return product if beta == 0 else product + (x if beta == 1 else x * beta)


def _needs_formula(node: fx.Node) -> bool:
    given = arguments(node)
    computed = given["attn_mask"] is not None and not is_fixed(given["attn_mask"])
    return bool(given["is_causal"] or given["enable_gqa"] or computed)


@formula("scaled_dot_product_attention", when=_needs_formula)
def _attention(
    x: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool, scale: Any, enable_gqa: bool
) -> Tensor:
    if enable_gqa:
        times = x.shape[-3] // key.shape[-3]
        key, value = (torch.repeat_interleave(each, times, -3) for each in (key, value))
    scores = torch.matmul(x * (1 / math.sqrt(x.shape[-1]) if scale is None else scale), key.transpose(-2, -1))
    if is_causal:
        rows, columns = scores.shape[-2:]
        attn_mask = torch.arange(columns) <= torch.arange(rows).unsqueeze(1)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.where(attn_mask, 0.0, -1e9)
    return torch.matmul(torch.softmax(scores if attn_mask is None else scores + attn_mask, -1), value)


@formula("bilinear")
def _bilinear(x: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    results, _, width = weight.shape
    matrix = weight.permute(1, 0, 2).reshape(-1, results * width)
    value = torch.sum(torch.matmul(x, matrix).reshape(*x.shape[:-1], results, width) * input2.unsqueeze(-2), [-1])
    return value if bias is None else value + bias


@formula("cdist", when=lambda node: arguments(node)["p"] == 2)
def _distances(x: Tensor, x2: Tensor) -> Tensor:
    return torch.sqrt(torch.sum(torch.square(x.unsqueeze(-2) - x2.unsqueeze(-3)), [-1]))
