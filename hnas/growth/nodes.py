"""Edits of a recurrent cell that make one node more from an old one: ``NodeInsertion(1)`` and ``NodeCopy(0)``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hnas.growth.edits import Opening
from hnas.growth.network import GrowingNetwork
from hnas.sampling.draws import relax, slot_types

_SHARES = (0.6, 0.4)  # of the output weight of a copied node: unequal, so that the copies get different gradients
_PARTS = ("a", "f", "b", "g", "join")


def _count(net: GrowingNetwork) -> int:
    return int(str(net.arch.get("nodes", 0)))


def _is_cell(net: GrowingNetwork, node: int) -> bool:
    """Return whether the network is a cell with node ``node``, and can have one more."""
    choices = net.space.choices
    return "nodes" in choices and 0 <= node < _count(net) and _count(net) + 1 in choices["nodes"].options


@dataclass(frozen=True)
class NodeCopy:
    """Append a copy of a node. The two share its output weight (G3).

    node: the number of the node, from 0.
    """

    node: int
    exact = False

    def possible(self, net: GrowingNetwork) -> bool:
        """Return whether the network is a cell with this node, and can have one more."""
        return _is_cell(net, self.node)

    def edit(self, net: GrowingNetwork) -> None:
        """Open a node, and copy weights and mixing weights into it."""
        last = _count(net)
        Opening("nodes", last + 1).edit(net)
        _move(net, self.node, last)
        weights = net.named()["weights"]
        weights[last] = weights[self.node] * _SHARES[1]
        weights[self.node] *= _SHARES[0]
        for part in _PARTS:
            _mix(net, last, part, _mixed(net, self.node, part))

    def to_json(self) -> dict[str, Any]:
        """Return the edit as a JSON object."""
        return {"edit": "copy", "node": self.node}


@dataclass(frozen=True)
class NodeInsertion:
    """Insert a node behind a node; it passes the state of that node on (G2, deepen).

    node: the number of the node, from 0. Later nodes move up by one, and take half of the state of this node from the
        new one.

    The new node computes W a with W = 1, the activation "linear" and the join "add". Its other mixing weights are zero.
    """

    node: int
    exact = False

    def possible(self, net: GrowingNetwork) -> bool:
        """Return whether the network is a cell with this node, can have one more, and offers linear and add."""
        known = {"f": "linear", "g": "linear", "join": "add"}
        slots = {part: f"nodes.{self.node}.{part}" for part in known}
        return _is_cell(net, self.node) and all(
            known[part] in slot_types(net.space, slot) for part, slot in slots.items()
        )

    def edit(self, net: GrowingNetwork) -> None:
        """Move the later nodes up, make the new one, and share its state among the readers of the old one."""
        count, new = _count(net), self.node + 1
        Opening("nodes", count + 1).edit(net)
        for old in range(count - 1, self.node, -1):
            _move(net, old, old + 1)
            for part in _PARTS:
                mixed = _renamed(_mixed(net, old, part), new, part)
                _mix(net, old + 1, part, mixed, tuple(mixed))
        named = net.named()
        named["weights"][new + 1 :] = named["weights"][new:-1].clone()
        named["weights"][new] = 0.0
        for side in ("left", "right"):
            named[f"nodes.{new}.{side}.bias"].zero_()
        matrix = named[f"nodes.{new}.left.weight"]
        matrix.copy_(torch.eye(len(matrix)))
        known = {"a": {f"s{new}": 1.0}, "b": {f"s{new}": 0.0}, "f": {"linear": 1.0}, "g": {}, "join": {"add": 1.0}}
        for part, weights in known.items():
            _mix(net, new, part, weights)

    def to_json(self) -> dict[str, Any]:
        """Return the edit as a JSON object."""
        return {"edit": "insert", "node": self.node}


def _renamed(mixed: dict[str, float], new: int, part: str) -> dict[str, float]:
    """Return the mixing weights of a node that moved up: state ``new`` shares with the state that is inserted."""
    if part not in ("a", "b"):
        return mixed
    moved = {f"s{int(s[1:]) + (int(s[1:]) > new)}": weight for s, weight in mixed.items()}
    if f"s{new}" not in mixed:
        return moved
    half = mixed[f"s{new}"] / 2
    return {**moved, f"s{new}": half, f"s{new + 1}": half}


def _move(net: GrowingNetwork, old: int, new: int) -> None:
    """Copy the matrices of a node to another one."""
    named = net.named()
    for name in (f"{side}.{leaf}" for side in ("left", "right") for leaf in ("weight", "bias")):
        named[f"nodes.{new}.{name}"].copy_(named[f"nodes.{old}.{name}"])


def _mixed(net: GrowingNetwork, node: int, part: str) -> dict[str, float]:
    """Return the mixing weights of the open options of a slot."""
    slot = f"nodes.{node}.{part}"
    weights = dict(zip(slot_types(net.space, slot), net.mixing[slot].tolist(), strict=True))
    return {kind: weights[kind] for kind in net.open_types(slot)}


def _mix(
    net: GrowingNetwork, node: int, part: str, weights: dict[str, float], opened: tuple[str, ...] | None = None
) -> None:
    """Set the mixing weights of a node, and which options of the slot are open.

    weights: of some options; those of the others become zero.
    opened: None (default): all options.
    """
    slot = f"nodes.{node}.{part}"
    types = slot_types(net.space, slot)
    net.mixing[slot].copy_(torch.tensor([weights.get(kind, 0.0) for kind in types]))
    soft = {s: net.open_types(s) for s in net.space.slots if isinstance(net.arch.get(f"{s}.op"), tuple)}
    net.arch = relax(net.space, net.arch, {**soft, slot: types if opened is None else opened}, single=True)
