"""The faster forms of training compute what torch's own layers compute, with the same gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hnas.ops.conv import Conv2d, ConvNorm


def gradients(run: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the outputs, and the gradients of the input and of the weights."""
    x = x.clone().requires_grad_()
    module.zero_grad()
    y = run(x)
    torch.autograd.backward((y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum())
    return [y, *(each.grad for each in (x, *module.parameters()) if each.grad is not None)]


@pytest.mark.parametrize(
    ("kernel", "side", "stride", "padded"), [(5, 4, 1, True), (7, 3, 2, True), (3, 1, 1, True), (5, 5, 1, False)]
)
def test_a_kernel_larger_than_its_input(
    kernel: int, side: int, stride: int, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, used = Conv2d(6, 6, kernel, stride, kernel // 2, groups=6, bias=False), []
    monkeypatch.setattr(F, "pad", lambda *given, pad=F.pad: used.append(given) or pad(*given))
    x = torch.randn(2, 6, side, side)
    wanted = gradients(lambda x: F.conv2d(x, layer.weight, None, stride, kernel // 2, 1, 6), layer, x)
    found = gradients(layer, layer, x)
    assert bool(used) == padded
    assert len(found) == 3
    for own, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(own, other)
    used.clear()
    layer.eval()(x)  # an extracted network has torch's own convolution
    assert not used


@pytest.mark.parametrize("act", ["relu", "relu6", "hardswish"])
def test_activations_in_place(act: str) -> None:
    layer = ConvNorm(3, 8, 3, act=act)
    with torch.no_grad():
        layer.norm.weight.uniform_(2, 9)  # values above 6 too
    x = torch.randn(4, 3, 5, 5)
    own = {"relu": F.relu, "relu6": F.relu6, "hardswish": F.hardswish}[act]
    wanted = gradients(lambda x: own(layer.norm(layer.conv(x))), layer, x)
    found = gradients(layer, layer, x)
    assert len(found) == 5
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two)


def test_relu6_in_place_keeps_two_maps_for_the_gradient() -> None:
    """The input of the batch norm and the input of the next layer; torch's own one keeps a third."""

    def kept(run: Callable[[Tensor], Tensor]) -> int:
        stores: dict[int, Tensor] = {}

        def keep(x: Tensor) -> Tensor:
            stores[x.data_ptr()] = x
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            following(run(x))
        return sum(each.shape == (2, 8, 16, 16) for each in stores.values())

    layer, following, x = ConvNorm(3, 8, 3, act="relu6"), Conv2d(8, 4, 1), torch.randn(2, 3, 16, 16)
    assert kept(layer) == 2
    assert kept(lambda x: F.relu6(layer.norm(layer.conv(x)))) == 3
