"""One step of a recurrent cell for a device, with as few operators as the cell allows: ``FoldedStep(net)``.

The number of operators decides the time of a small network more than their size. So linear maps that follow each other
become one, and nodes that nothing but the output reads are computed together. The results differ from those of
``Recurrent`` by rounding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hnas.ops.cell import ACTIVATIONS, JOINS, LIMIT, Node, Recurrent

_LINEAR = "linear"  # the activation that is the identity
_FIRST = "s0"
_NARROW = 32  # up to this width a matrix product is not slower than the operators that it replaces


class FoldedStep(nn.Module):
    """One step of a recurrent network, with the state as input and output: (x [N, F], h [N, M]) -> (y [N, D], h).

    net: a member with one option in every slot; its weights are copied.

    1. Every side of a node that reads s0 = W_x x + W_h h + c reads [x, h] instead, by the product of the two matrices.
       Where this would need more weights, s0 is computed.
    2. A node that no other node reads is computed in one layer with those that have the same inputs, activations and
       join. The sides of a sum are layers of their own.
    3. What is linear between a state and the output is one matrix: output weights, and sides without an activation.
    """

    def __init__(self, net: Recurrent) -> None:
        super().__init__()
        folded = _Folded(net)
        self.layers = nn.ModuleList(folded.layers)
        self.total = _Total(folded, net.width)
        self.readout = _linear(*_parts(net.readout))

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs of a row and the next state."""
        values = [torch.cat([x, h], 1)]
        for layer in self.layers:
            values.append(layer(values))
        h = self.total(values).clamp(-LIMIT, LIMIT)
        return self.readout(h), h


class _Side(nn.Module):
    """An activation of a linear map of the value ``source``."""

    def __init__(self, source: int, activation: str, maps: Sequence[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.source, self.activation = source, activation
        self.linear = _linear(torch.cat([matrix for matrix, _ in maps]), torch.cat([bias for _, bias in maps]))

    def forward(self, values: Sequence[Tensor]) -> Tensor:
        """Return [N, outputs of all maps]."""
        return ACTIVATIONS[self.activation](self.linear(values[self.source]))


class _Joined(nn.Module):
    """The sum or the product of two sides."""

    def __init__(self, kind: str, left: _Side, right: _Side) -> None:
        super().__init__()
        self.kind, self.left, self.right = kind, left, right

    def forward(self, values: Sequence[Tensor]) -> Tensor:
        """Return the joined sides."""
        return JOINS[self.kind](self.left(values), self.right(values))


class _Folded:
    """The layers of a step, and how their values are summed.

    layers: layer k makes value k + 1; value 0 is [x, h].
    dense: value -> its matrix [width, columns] in the weighted sum.
    scales: value -> one factor for each of its parts of ``width`` columns.
    bias: added to the sum.
    """

    def __init__(self, net: Recurrent) -> None:
        self.layers: list[nn.Module] = []
        self.dense: dict[int, Tensor] = {}
        self.scales: dict[int, list[Tensor]] = {}
        embed, bias = _parts(net.embed)
        self.bias: Tensor = torch.zeros_like(bias)
        self._first = torch.cat([embed, _exact(net.recur.weight)], 1), bias
        self._places = {_FIRST: 0}
        nodes = [node for node in net.nodes if isinstance(node, Node)]
        sources = [blend.options[0] for node in nodes for blend in (node.a, node.b)]
        reads, columns = sources.count(_FIRST), self._first[0].shape[1]
        self._skips_first = reads * columns <= columns + reads * net.width  # case 1
        if not self._skips_first:
            self._places[_FIRST] = self._add(_Side(0, _LINEAR, [self._first]))
        last = defaultdict[tuple[str, ...], list[tuple[Node, Tensor]]](list)
        for k, (node, weight) in enumerate(zip(nodes, _exact(net.weights), strict=True)):
            if f"s{k + 1}" in sources:
                place = self._places[f"s{k + 1}"] = self._join([node])
                self.scales[place] = [weight]
            else:
                last[_kind(node)].append((node, weight))
        self._add_last(last)

    def _add_last(self, last: dict[tuple[str, ...], list[tuple[Node, Tensor]]]) -> None:
        """Add the nodes that no other node reads; those of a group have the same ``_kind``."""
        terms = defaultdict[tuple[int, str], list[tuple[tuple[Tensor, Tensor], Tensor]]](list)
        for (*_, join), group in last.items():
            if join == "product":  # case 2
                self.scales[self._join([node for node, _ in group])] = [weight for _, weight in group]
                continue
            for node, weight in group:
                for blend, activation, matrix in ((node.a, node.f, node.left), (node.b, node.g, node.right)):
                    source, found = self._map(blend.options[0], matrix)
                    terms[source, activation.options[0]].append((found, weight))
        for (place, kind), listed in terms.items():
            if kind == _LINEAR:  # case 3
                self.dense[place] = torch.stack([weight * matrix for (matrix, _), weight in listed]).sum(0)
                self.bias = self.bias + torch.stack([weight * bias for (_, bias), weight in listed]).sum(0)
            else:
                made = self._add(_Side(place, kind, [each for each, _ in listed]))
                self.scales[made] = [weight for _, weight in listed]

    def _add(self, layer: nn.Module) -> int:
        self.layers.append(layer)
        return len(self.layers)

    def _join(self, nodes: Sequence[Node]) -> int:
        """Add a layer of nodes of one kind; return its value."""
        node, sides = nodes[0], []
        for blend, activation, name in ((node.a, node.f, "left"), (node.b, node.g, "right")):
            maps = [self._map(blend.options[0], each.get_submodule(name)) for each in nodes]
            sides.append(_Side(maps[0][0], activation.options[0], [found for _, found in maps]))
        return self._add(_Joined(node.join.options[0], *sides))

    def _map(self, state: str, linear: nn.Module) -> tuple[int, tuple[Tensor, Tensor]]:
        """Return the value that a side reads, and its matrix and bias."""
        matrix, bias = _parts(linear)
        if state == _FIRST and self._skips_first:
            matrix, bias = matrix @ self._first[0], matrix @ self._first[1] + bias
        return self._places[state], (matrix, bias)


class _Total(nn.Module):
    """The weighted sum of the values: [N, width].

    ``linear`` reads the values ``dense`` side by side; the values ``scaled`` are multiplied by factors.
    """

    def __init__(self, folded: _Folded, width: int) -> None:
        super().__init__()
        eye = torch.eye(width, dtype=torch.float64, device=folded.bias.device)
        dense, scales = dict(folded.dense), dict(folded.scales)
        for place in [place for place in scales if place in dense or width <= _NARROW]:
            added = torch.cat([scale * eye for scale in scales.pop(place)], 1)
            dense[place] = dense[place] + added if place in dense else added
        self.width, self.dense, self.scaled = width, tuple(dense), tuple(scales)
        self.linear = _linear(torch.cat([*dense.values()], 1), folded.bias) if dense else None
        self.factors = nn.ParameterList(
            _float(torch.cat([scale.expand(1, width) for scale in scales[place]], 1)) for place in self.scaled
        )

    def forward(self, values: Sequence[Tensor]) -> Tensor:
        """Return the sum of the values, each multiplied by its matrix or its factors."""
        parts: list[Tensor] = []
        for place, factors in zip(self.scaled, self.factors, strict=True):
            parts += (values[place] * factors).split(self.width, 1)
        if self.linear is not None:
            read = [values[place] for place in self.dense]
            parts.append(self.linear(read[0] if len(read) == 1 else torch.cat(read, 1)))
        found = parts[0]
        for part in parts[1:]:
            found = found + part
        return found


def _kind(node: Node) -> tuple[str, ...]:
    return tuple(blend.options[0] for blend in (node.a, node.f, node.b, node.g, node.join))


def _parts(linear: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the matrix and the bias of a layer."""
    assert isinstance(linear, nn.Linear)
    return _exact(linear.weight), _exact(linear.bias)


def _exact(tensor: Tensor) -> Tensor:
    return tensor.detach().double()


def _float(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.float().contiguous(), requires_grad=False)


def _linear(matrix: Tensor, bias: Tensor) -> nn.Linear:
    """Return a layer with this matrix and bias."""
    made = nn.Linear(matrix.shape[1], matrix.shape[0], device="meta")
    made.weight, made.bias = _float(matrix.detach()), _float(bias.detach())
    return made
