"""Define formulas of recurrent layers of a fixed length: each step is written out, all steps share their weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from hnas.export.backends.tflite.writer.formulas.registry import formula

_State = tuple[Tensor, ...]
# The products of the input and of the state with their weights, and the state before; returns the state after.
_Step = Callable[[Tensor, Tensor, _State], _State]
_LONGEST = 1000  # steps; a longer graph takes minutes to write


def _long_short(given: Tensor, fed_back: Tensor, state: _State) -> _State:
    i, f, g, o = torch.chunk(given + fed_back, 4, -1)
    cell = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(cell), cell


def _gated(given: Tensor, fed_back: Tensor, state: _State) -> _State:
    (r, z, n), (fed_r, fed_z, fed_n) = torch.chunk(given, 3, -1), torch.chunk(fed_back, 3, -1)
    new = torch.tanh(n + torch.sigmoid(r + fed_r) * fed_n)
    return (new + torch.sigmoid(z + fed_z) * (state[0] - new),)


def _simple(activation: Callable[[Tensor], Tensor]) -> _Step:
    return lambda given, fed_back, _: (activation(given + fed_back),)


@formula("lstm.input")
def _lstm(
    x: Tensor, hx: Sequence[Tensor], params: Sequence[Tensor], num_layers: int, bidirectional: bool, batch_first: bool
) -> tuple[Tensor, ...]:
    if hx[0].shape[-1] != hx[1].shape[-1]:
        raise ValueError("an LSTM with a projection")
    return _stacked(x, hx, params, num_layers, bidirectional, batch_first, _long_short)


@formula("gru.input")
def _gru(
    x: Tensor, hx: Tensor, params: Sequence[Tensor], num_layers: int, bidirectional: bool, batch_first: bool
) -> tuple[Tensor, ...]:
    return _stacked(x, [hx], params, num_layers, bidirectional, batch_first, _gated)


@formula("rnn_tanh.input")
def _rnn_tanh(
    x: Tensor, hx: Tensor, params: Sequence[Tensor], num_layers: int, bidirectional: bool, batch_first: bool
) -> tuple[Tensor, ...]:
    return _stacked(x, [hx], params, num_layers, bidirectional, batch_first, _simple(torch.tanh))


@formula("rnn_relu.input")
def _rnn_relu(
    x: Tensor, hx: Tensor, params: Sequence[Tensor], num_layers: int, bidirectional: bool, batch_first: bool
) -> tuple[Tensor, ...]:
    return _stacked(x, [hx], params, num_layers, bidirectional, batch_first, _simple(torch.relu))


def _stacked(
    x: Tensor,
    first: Sequence[Tensor],
    params: Sequence[Tensor],
    layers: int,
    two_ways: bool,
    batch_first: bool,
    step: _Step,
) -> tuple[Tensor, ...]:
    """Return the outputs of the last layer, and the last states of every layer and direction."""
    flat = x.ndim == 2
    x = x.unsqueeze(0) if flat else x if batch_first else x.transpose(0, 1)
    ways = 2 if two_ways else 1
    if x.shape[1] > _LONGEST:
        raise ValueError(f"more than {_LONGEST} steps")
    each = len(params) // (layers * ways)
    last: list[_State] = []
    for layer in range(layers):
        outputs = []
        for way in range(ways):
            number = layer * ways + way
            before = tuple(part[number : number + 1] if flat else part[number] for part in first)
            values, state = _layer(x, before, params[each * number : each * (number + 1)], step, backwards=way == 1)
            outputs.append(values)
            last.append(state)
        x = torch.cat(outputs, -1) if two_ways else outputs[0]
    ends = [torch.cat(parts) if flat else torch.stack(parts) for parts in zip(*last, strict=True)]
    return x.squeeze(0) if flat else x if batch_first else x.transpose(0, 1), *ends


def _layer(
    x: Tensor, state: _State, params: Sequence[Tensor], step: _Step, *, backwards: bool
) -> tuple[Tensor, _State]:
    into, back, *biases = params
    given = F.linear(x, into, biases[0] if biases else None)
    outputs = []
    for number in reversed(range(x.shape[1])) if backwards else range(x.shape[1]):
        state = step(given.select(1, number), F.linear(state[0], back, biases[1] if biases else None), state)
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if backwards else outputs, 1), state
