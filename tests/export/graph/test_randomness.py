"""A random operator is named with its module before anything is converted; what is switched off is no offence."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hnas.export.device.errors import ExportError
from hnas.export.graph.program import capture
from hnas.export.graph.randomness import refuse_randomness

Function = Callable[[Tensor], Tensor]


class Block(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Net(nn.Module):
    """Call a function two modules deep."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Identity(), nn.Sequential(nn.Linear(4, 4), Block(function))])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def attended(x: Tensor, rate: float) -> Tensor:
    q = x.reshape(1, 1, 2, 2)
    return F.scaled_dot_product_attention(q, q, q, dropout_p=rate)


DROPOUT = "pass training=self.training to F.dropout, which drops by default even in eval mode"
OUTSIDE = "draw them outside of the network and pass them as an input"


@pytest.mark.parametrize(
    ("function", "operator", "mend"),
    [
        (lambda x: F.dropout(x, 0.5), "aten.dropout", DROPOUT),
        (lambda x: F.dropout2d(x.reshape(1, 4, 1, 1)), "aten.feature_dropout", DROPOUT),
        (lambda x: attended(x, 0.1), "aten.scaled_dot_product_attention", "pass dropout_p=0.0 in eval mode"),
        (lambda x: x + torch.randn(4), "aten.randn", OUTSIDE),
        (lambda x: x + torch.rand_like(x), "aten.rand_like", OUTSIDE),
        (lambda x: x * torch.bernoulli(torch.full((4,), 0.5)), "aten.bernoulli", OUTSIDE),
        (lambda x: x + torch.zeros(4).uniform_(), "aten.uniform", OUTSIDE),
        (lambda x: F.rrelu(x, training=True), "aten.rrelu", OUTSIDE),
    ],
)
def test_case_1_random_operators_are_named_with_their_module(function: Function, operator: str, mend: str) -> None:
    with pytest.raises(ExportError) as caught:
        refuse_randomness(capture(Net(function), torch.ones(4)))
    assert str(caught.value) == f"the network draws random numbers in eval mode: {operator} in layers.1.1; {mend}"


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.dropout(x, 0.5, False),
        lambda x: F.dropout(x, 0.0),
        lambda x: attended(x, 0.0),
        F.rrelu,
    ],
)
def test_case_2_what_is_switched_off_is_allowed(function: Function) -> None:
    refuse_randomness(capture(Net(function), torch.ones(4)))


@pytest.mark.filterwarnings("ignore:The tensor attributes")
def test_case_2_modules_with_dropout_inside_are_allowed() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 4, 2, dropout=0.5, batch_first=True)
            self.attention = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(self.lstm(x)[0])

    refuse_randomness(capture(Recurrent(), torch.ones(1, 3, 4)))


def test_case_3_a_random_value_that_nothing_reads_is_allowed() -> None:
    refuse_randomness(capture(Net(lambda x: (torch.randn(4), x)[1]), torch.ones(4)))


def test_many_random_operators_are_counted() -> None:
    net = nn.Sequential(*(Block(F.dropout) for _ in range(5)))
    with pytest.raises(ExportError, match=r"aten.dropout in 0, aten.dropout in 1, aten.dropout in 2 and 2 more; pass"):
        refuse_randomness(capture(net, torch.ones(4)))
