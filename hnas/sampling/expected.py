"""Compute the expected cost of the architecture parameters: the cost of each type, weighted by its probability.

``table = latencies(study, space)``; ``penalty(space, table, logits, weight=0.1, limit=2.0)`` is a term of the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hnas.cost import Price
from hnas.sampling.draws import logits_of, relax, slot_types
from hnas.space import Arch, Space

Costs = Mapping[str, Mapping[str, float]]  # slot -> type -> what the type adds to the cost in that slot


@dataclass(frozen=True)
class CostTable:
    """Hold costs that add up: of the network without its slots' types, and of every type in every slot.

    base: cost of the largest member with the cheapest type in every slot.
    types: slot -> type -> its cost above the cheapest type of the slot.
    """

    base: float
    types: Costs

    def of(self, arch: Mapping[str, object]) -> float:
        """Return the sum for an architecture; a type without an entry adds nothing."""
        return self.base + sum(own.get(str(arch.get(f"{slot}.op")), 0.0) for slot, own in self.types.items())


class _Prices(Protocol):
    """A study, as far as this module uses it."""

    def price(self, arch: Arch, metric: str) -> Price:
        """Return the price of an architecture in a metric."""
        ...


def latencies(study: _Prices, space: Space, metric: str = "latency_ms") -> CostTable:
    """Return the costs of every type in a metric of the study: latency, parameters, MACs or memory.

    metric: a cost of the study ("latency_ms").
    """
    return type_costs(space, lambda arch: study.price(arch, metric).value)


def type_costs(space: Space, price: Callable[[Arch], float]) -> CostTable:
    """Return the costs of every type, as differences between members that differ from the largest in one slot.

    price: the cost of a member, for instance its measured latency.
    """
    found: dict[str, dict[str, float]] = {}
    base = largest = price(space.largest)
    for slot in space.slots:
        prices = {kind: price(relax(space, space.largest, {slot: (kind,)})) for kind in slot_types(space, slot)}
        cheapest = min(prices.values())
        found[slot] = {kind: value - cheapest for kind, value in prices.items()}
        base += cheapest - largest
    return CostTable(base, found)


def expected_cost(space: Space, costs: Costs, weights: Mapping[str, Tensor]) -> Tensor:
    """Return the sum over slots and types of weight times cost; gradients reach the weights.

    costs: slot -> type -> cost.
    weights: slot -> [types], probabilities or gates in the order of ``slot_types``. A slot that is left out adds 0.

    Raises:
        ValueError: a type has no cost.
    """
    total = torch.zeros(())
    for slot, own in weights.items():
        known = slot_types(space, slot)
        if missing := [kind for kind in known if kind not in costs.get(slot, {})]:
            raise ValueError(f"there is no cost for {missing[0]!r} in {slot!r}; make the table with latencies()")
        total = total.to(own.device) + own @ own.new_tensor([costs[slot][kind] for kind in known])
    return total


def penalty(
    space: Space,
    table: CostTable | None,
    extra: Mapping[str, Tensor] | None,
    weight: float,
    limit: float | None,
) -> Tensor | None:
    """Return the term that the expected cost adds to the loss; None without a table or without logits.

    table: the costs of the types.
    extra: slot -> logits; the expected cost is the mean by their softmax.
    weight: factor of the term.
    limit: the expected cost may reach this limit: the term is ``weight * max(0, cost / limit - 1)``, a hinge. None: the
        term is ``weight * cost``.

    Raises:
        ValueError: a type has no cost.
    """
    if table is None or extra is None:
        return None
    shares = {slot: torch.softmax(logits_of(space, slot, extra), 0) for slot in space.slots}
    cost = table.base + expected_cost(space, table.types, shares)
    return weight * (cost if limit is None else torch.relu(cost / limit - 1))
