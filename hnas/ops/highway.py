"""The recurrent cell of DARTS: nodes that mix an earlier state with an activation of it, and the mean of all nodes.

``HighwayRecurrent(features=3, outputs=3, width=16, nodes=[Highway(...)])`` reads a sequence [N, T, features].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hnas.ops.cell import ACTIVATIONS, LIMIT, Blend, Linear, Recurrence, activated

_Mix = Callable[[Tensor], Tensor]


class _Pair(nn.Module):
    """The two matrices of a highway, without bias. They are two layers, so that a smaller width is a slice of each."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.gate = Linear(inputs, width, bias=False)
        self.value = Linear(inputs, width, bias=False)

    def matrix(self) -> Tensor:
        """Return both matrices [2 * width, inputs], the gate's first."""
        return torch.cat([self.gate.weight, self.value.weight])

    def forward(self, x: Tensor) -> Tensor:
        """Return the inputs of gate and activation: [..., inputs] -> [..., 2 * width], by one matrix product."""
        return F.linear(x, self.matrix())


def _highway(old: Tensor, both: Tensor, activation: _Mix, total: Tensor | None = None) -> Tensor:
    """Return total * old + sigmoid(c) * (activation(z) - total * old).

    old: [..., width].
    both: c and z side by side, [..., 2 * width].
    total: factor of the old state, the sum of the weights of a soft activation; None: 1.
    """
    c, z = both.view(*both.shape[:-1], 2, old.shape[-1]).unbind(-2)
    kept = old if total is None else total * old
    return kept + torch.sigmoid(c) * (activation(z) - kept)


class Highway(_Pair):
    """A node: s + sigmoid(W_c s) * (f(W_z s) - s), where s is an earlier state.

    a: chooses s among the earlier states s0, s1, ...
    f: chooses the activation.

    A soft node is the sum of that over all states and activations, each with the product of its two weights.
    """

    def __init__(self, width: int, a: Blend, f: Blend) -> None:
        super().__init__(width, width)
        self.a, self.f = a, f

    def bind(self, count: int) -> Callable[[Sequence[Tensor]], Tensor]:
        """Return the function of this node: earlier states, each [N, width] -> the state of the node [N, width].

        count: number of the earlier states.

        What all rows of a sequence share is computed once, here. One matrix product serves all earlier states and all
        activations, and each sum over options is one more.
        """
        matrix, total = self.matrix().T, None if self.f.gates is None else self.f.gates.sum()
        activation = ACTIVATIONS[self.f.options[0]] if self.f.gates is None else _mixture(self.f)
        if self.a.gates is None:
            place = int(self.a.options[0][1:])
            return lambda states: _highway(states[place], states[place] @ matrix, activation, total)
        shares = self.a.spread([f"s{k}" for k in range(count)])

        def mixed(states: Sequence[Tensor]) -> Tensor:
            together = torch.stack(list(states))
            old = together.flatten(0, 1)
            candidates = _highway(old, old @ matrix, activation, total)
            return (shares @ candidates.view(count, -1)).view_as(states[0])

        return mixed


def _mixture(blend: Blend) -> _Mix:
    """Return the function that sums all activations of a tensor, each times its gate."""
    weights = blend.spread(list(ACTIVATIONS))
    return lambda z: (weights @ activated(z).flatten(1)).view_as(z)


class HighwayRecurrent(Recurrence):
    """A recurrent network of DARTS' cell: [N, T, features] -> [N, T, outputs].

    s0 = h_{t-1} + sigmoid(c) * (tanh(z) - h_{t-1}), where c and z are linear in x_t and h_{t-1}; s_i = node i;
    h_t = the mean of s1, s2, ... within [-10, 10]; y_t = W_y h_t + d.

    norm: normalise s0 and every node by the moments of the batch (search).
    """

    def __init__(
        self, features: int, outputs: int, width: int, nodes: Iterable[nn.Module], *, norm: bool = False
    ) -> None:
        super().__init__()
        self.width = width
        self.norm = norm
        self.embed = _Pair(features, width)
        self.recur = _Pair(width, width)
        self.nodes = nn.ModuleList(nodes)
        self.readout = Linear(width, outputs)

    def bind(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the function of the cell: (embedded row [N, 2 * width], state [N, width]) -> next state."""
        nodes = [node.bind(k) for k, node in enumerate(self.nodes, 1) if isinstance(node, Highway)]
        matrix = self.recur.matrix()

        def cell(embedded: Tensor, h: Tensor) -> Tensor:
            states = [self._normalised(_highway(h, embedded + F.linear(h, matrix), torch.tanh))]
            for node in nodes:
                states.append(self._normalised(node(states)))
            found = states[1]
            for state in states[2:]:
                found = found + state
            return (found / len(nodes)).clamp(-LIMIT, LIMIT)

        return cell

    def _normalised(self, state: Tensor) -> Tensor:
        return F.batch_norm(state, None, None, training=True) if self.norm else state
