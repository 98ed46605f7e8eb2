"""The masked optimisers step as torch's do where all is used, and refuse what they cannot do (rule 6)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hnas.training.loop import Schedule
from hnas.training.optimiser import MaskedAdam, MaskedSGD


@pytest.mark.parametrize("kind", [MaskedSGD, MaskedAdam])
def test_masked_steps_equal_those_of_torch_where_all_is_used(kind):
    ours, theirs = nn.Linear(5, 3), nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    optimiser = kind(dict(ours.named_parameters()), momentum=0.9, decay=0.01)
    groups = [{"params": [theirs.weight], "weight_decay": 0.01}, {"params": [theirs.bias], "weight_decay": 0.0}]
    if kind is MaskedSGD:
        reference = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    else:
        reference = torch.optim.AdamW(groups, lr=0.1)
    x = torch.randn(8, 5)
    for _ in range(4):
        ours(x).square().sum().backward()
        optimiser.step(0.1, [{name: (p, None) for name, p in ours.named_parameters()}])
        reference.zero_grad()
        theirs(x).square().sum().backward()
        reference.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.bias, theirs.bias, rtol=1e-5, atol=1e-5)


def test_adam_counts_the_steps_of_each_weight():
    """A weight that a path uses for the first time moves by the rate, as in the first step of Adam."""
    net = nn.Linear(2, 2, bias=False)
    optimiser, half = MaskedAdam({"weight": net.weight}, decay=0.0), (slice(0, 1),)
    for _ in range(50):
        net.weight.grad = torch.tensor([[3.0, 3.0], [0.0, 0.0]])
        optimiser.step(0.1, [{"weight": (net.weight, half)}])
    before = net.weight.detach().clone()
    net.weight.grad = torch.full((2, 2), 2.0)
    optimiser.step(0.1, [{"weight": (net.weight, None)}])
    torch.testing.assert_close(before[1] - net.weight[1], torch.full((2,), 0.1))


def test_a_gradient_that_is_not_finite_moves_nothing():
    net = nn.Linear(2, 2)
    optimiser, before = MaskedSGD(dict(net.named_parameters())), net.weight.detach().clone()
    net.weight.grad = torch.full_like(net.weight, float("nan"))
    with pytest.raises(RuntimeError, match="norm of the gradients is nan"):
        optimiser.step(0.1, [{"weight": (net.weight, None)}])
    assert torch.equal(net.weight, before)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"optimiser": "lion"}, "no optimiser 'lion'; known: sgd, adam"),
        ({"optimiser": "adam", "momentum": 1.0}, "the momentum of Adam is 1; give a number from 0 to below 1"),
    ],
)
def test_what_no_optimiser_can_do_is_one_line(given, line):
    with pytest.raises(ValueError, match=line) as found:
        Schedule(((1, 0.1),), **given)
    assert "\n" not in str(found.value)
