"""A recurrent cell of two-input nodes: soft choices of inputs, activations and sum or product, and a weighted output.

``Recurrent(features=3, outputs=3, width=16, nodes=[Node(...)])`` reads a sequence [N, T, features].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

# "linear" is the identity; the name "identity" means a slot without a branch elsewhere.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
JOINS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"add": torch.add, "product": torch.mul}


LIMIT = 10.0  # of a state: a random member multiplies states with each other and would overflow within a window


class Linear(nn.Linear):
    """A linear layer that skips its initialisation on the meta device, where weights have no values."""

    def reset_parameters(self) -> None:
        """Draw new weights."""
        if not self.weight.is_meta:
            super().reset_parameters()


class Blend(nn.Module):
    """Choose one of several tensors, or (gated) their sum weighted by ``gates`` [options].

    options: the names of the tensors, in order.
    """

    def __init__(self, options: Sequence[str], *, gated: bool) -> None:
        super().__init__()
        self.options = tuple(options)
        self.gates = nn.Parameter(torch.ones(len(options))) if gated else None

    @classmethod
    def of(cls, option: str | tuple[str, ...]) -> Blend:
        """Return the blend of the option of a slot: one name, or the names of a relaxed slot."""
        return cls(option, gated=True) if isinstance(option, tuple) else cls((str(option),), gated=False)

    def bind(self) -> Callable[[Callable[[str], Tensor]], Tensor]:
        """Return a function that takes candidate tensors by name and returns the blend."""
        if self.gates is None:
            return lambda candidate: candidate(self.options[0])
        terms = list(zip(self.options, self.gates.unbind(), strict=True))
        return lambda candidate: _weighted(terms, candidate)

    def spread(self, names: Sequence[str]) -> Tensor:
        """Return the weight [names] of each name: its gate, or zero for a closed option. Only where it is gated.

        A sum over all names has the same terms whatever is open, so that opening at weight zero changes no bit.
        """
        assert self.gates is not None
        if self.options == tuple(names):
            return self.gates
        at = torch.tensor([names.index(name) for name in self.options], device=self.gates.device)
        return self.gates.new_zeros(len(names)).scatter(0, at, self.gates)


def _weighted(terms: Sequence[tuple[str, Tensor]], candidate: Callable[[str], Tensor]) -> Tensor:
    """Return the weighted sum. Terms are added one after another: a term of weight zero changes no bit."""
    (name, weight), *others = terms
    found = weight * candidate(name)
    for name, weight in others:
        found = torch.addcmul(found, weight, candidate(name))
    return found


def activated(z: Tensor, axis: int = 0) -> Tensor:
    """Return all activations of a tensor, stacked along a new axis in the order of ``ACTIVATIONS``."""
    return torch.stack([activation(z) for activation in ACTIVATIONS.values()], axis)


class Node(nn.Module):
    """A node with two inputs: join(f(W_A a + c_A), g(W_B b + c_B)); "add" is u + v, "product" is u o v.

    a, b: choose the inputs among the earlier states s0, s1, ...
    f, g: choose the activations of the two sides.
    join: choose the sum or the elementwise (Hadamard) product.
    """

    def __init__(self, width: int, a: Blend, f: Blend, b: Blend, g: Blend, join: Blend) -> None:
        super().__init__()
        self.a, self.f, self.b, self.g, self.join = a, f, b, g, join
        self.left = Linear(width, width)
        self.right = Linear(width, width)

    def bind(self, count: int) -> Callable[[Sequence[Tensor]], Tensor]:
        """Return the function of this node: earlier states, each [N, width] -> the state of the node [N, width].

        count: number of the earlier states.

        What all rows of a sequence share is computed once, here. If every choice is soft, each sum over options and the
        products of both sides are one matrix product: the cost of a search step is the number of operators, not their
        size.
        """
        join = self.join.bind()
        if any(blend.gates is None for blend in (self.a, self.b, self.f, self.g)):
            a, b, f, g = (blend.bind() for blend in (self.a, self.b, self.f, self.g))

            def apart(states: Sequence[Tensor]) -> Tensor:
                left = self.left(a(lambda name: states[int(name[1:])]))
                right = self.right(b(lambda name: states[int(name[1:])]))
                return _join(join, f(lambda name: ACTIVATIONS[name](left)), g(lambda name: ACTIVATIONS[name](right)))

            return apart
        inputs = torch.stack([blend.spread([f"s{k}" for k in range(count)]) for blend in (self.a, self.b)])
        activations = torch.stack([blend.spread(list(ACTIVATIONS)) for blend in (self.f, self.g)])[:, None]
        matrix = torch.stack([self.left.weight.T, self.right.weight.T])
        bias = torch.stack([self.left.bias, self.right.bias])[:, None]

        def together(states: Sequence[Tensor]) -> Tensor:
            blended = torch.mm(inputs, torch.stack(list(states)).flatten(1)).view(2, *states[0].shape)
            both = torch.baddbmm(bias, blended, matrix)
            u, v = torch.bmm(activations, activated(both, 1).flatten(2)).view_as(both).unbind()
            return _join(join, u, v)

        return together


def _join(join: Callable[[Callable[[str], Tensor]], Tensor], u: Tensor, v: Tensor) -> Tensor:
    return join(lambda name: JOINS[name](u, v))


class Recurrence(nn.Module):
    """A recurrent network: [N, T, features] -> [N, T, outputs], from a zero state. A subclass defines the cell.

    width: numbers of the state of an example.
    embed: what the cell reads of a row; it is computed for all rows at once.
    readout: [N, width] -> [N, outputs].
    """

    width: int
    embed: nn.Module
    readout: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs at every row of a sequence."""
        cell, states = self.bind(), []
        h = x.new_zeros(len(x), self.width)
        for row in self.embed(x).unbind(1):
            h = cell(row, h)
            states.append(h)
        y: Tensor = self.readout(torch.stack(states, 1))
        return y

    def bind(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the function of the cell: (embedded row [N, E], state [N, width]) -> next state [N, width]."""
        raise NotImplementedError

    def step(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return (y, next h) of one row: x [N, features], h [N, width]."""
        h = self.bind()(self.embed(x), h)
        y: Tensor = self.readout(h)
        return y, h


class Recurrent(Recurrence):
    """A recurrent network of one cell of two-input nodes: [N, T, features] -> [N, T, outputs].

    s0 = W_x x_t + W_h h_{t-1} + c; s_i = node i; h_t = sum_i weights[i] s_i within [-10, 10]; y_t = W_y h_t + d.

    The output is a weighted sum and no mean, so that a node of weight 0 can be added without a change of the others.
    """

    def __init__(self, features: int, outputs: int, width: int, nodes: Iterable[nn.Module]) -> None:
        super().__init__()
        self.width = width
        self.embed = Linear(features, width)
        self.recur = Linear(width, width, bias=False)
        self.nodes = nn.ModuleList(nodes)
        self.weights = nn.Parameter(torch.full((len(self.nodes),), 1 / len(self.nodes)))
        self.readout = Linear(width, outputs)

    def bind(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the function of the cell: (embedded row, state) -> next state, all [N, width]."""
        nodes = [node.bind(k) for k, node in enumerate(self.nodes, 1) if isinstance(node, Node)]
        weights = self.weights.unbind()

        def cell(embedded: Tensor, h: Tensor) -> Tensor:
            states = [embedded + self.recur(h)]
            for node in nodes:
                states.append(node(states))
            found = weights[0] * states[1]
            for weight, state in zip(weights[1:], states[2:], strict=True):
                found = torch.addcmul(found, weight, state)
            bounded: Tensor = found.clamp(-LIMIT, LIMIT)
            return bounded

        return cell


class Step(nn.Module):
    """One step of a recurrent network, with the state as input and output: (x [N, F], h [N, M]) -> (y [N, D], h)."""

    def __init__(self, net: Recurrence) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs of a row and the next state."""
        return self.net.step(x, h)


def initialise(net: nn.Module) -> None:
    """Draw orthogonal recurrent matrices and Xavier-uniform others, with zero biases."""
    for name, module in net.named_modules():
        if isinstance(module, nn.Linear):
            draw = nn.init.orthogonal_ if name.startswith(("recur", "nodes.")) else nn.init.xavier_uniform_
            draw(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
