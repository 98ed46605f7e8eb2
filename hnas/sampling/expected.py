"""Compute the expected cost of the architecture parameters: the cost of each type, weighted by its probability.

``table = latencies(study, space)``; ``penalty(space, table, logits, weight=0.1, limit=2.0)`` is a term of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hnas.cost import Price
from hnas.ranges import Limit
from hnas.sampling.draws import logits_of, relax, slot_types
from hnas.space import Arch, Space

_SAID = {"latency_ms": "latency", "measured_ms": "latency"}  # of the metrics whose names are keys of a journal

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

    Raises:
        ValueError: the types of every slot cost the same, so that the cost would have no gradient, or a type has no
            finite cost.
    """
    table = type_costs(space, lambda arch: study.price(arch, metric).value)
    _refuse_flat(table, _SAID.get(metric, metric))
    return table


def _refuse_flat(table: CostTable, what: str = "cost") -> None:
    """Raise ValueError if the types of every slot have the same cost."""
    if not any(cost > 0 for own in table.types.values() for cost in own.values()):
        why = f"the types of every slot have the same {what}"
        raise ValueError(f"{why}, so this cost has no gradient; choose another cost, or leave it out")


def type_costs(space: Space, price: Callable[[Arch], float]) -> CostTable:
    """Return the costs of every type, as differences between members that differ from the largest in one slot.

    price: the cost of a member, for instance its measured latency.

    Raises:
        ValueError: a price is not finite: the member could not be compiled or run.
    """
    found: dict[str, dict[str, float]] = {}
    base = largest = price(space.largest)
    if not math.isfinite(largest):
        raise ValueError(f"the largest member costs {largest}; the costs of types are differences from a finite cost")
    for slot in space.slots:
        prices = {kind: price(relax(space, space.largest, {slot: (kind,)})) for kind in slot_types(space, slot)}
        if endless := [kind for kind, value in prices.items() if not math.isfinite(value)]:
            what = f"{endless[0]!r} in {slot!r} costs {prices[endless[0]]}"
            raise ValueError(f"{what}: the network with it cannot be built; leave this type out of the space")
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


def window_of(limit: Limit) -> tuple[float, float]:
    """Return the lowest and the highest allowed cost: (0, limit) for a number.

    Raises:
        ValueError: the window ends before it begins, or at 0.
    """
    low, high = limit if isinstance(limit, tuple) else (0.0, limit)
    if not 0 <= low <= high or not high > 0:
        raise ValueError(f"the window of the cost is [{low:g}, {high:g}]; give the lower end first, and no end below 0")
    return low, high


def penalty(
    space: Space,
    table: CostTable | None,
    extra: Mapping[str, Tensor] | None,
    weight: float,
    limit: Limit | None,
    among: Mapping[str, Sequence[int]] | None = None,
) -> Tensor | None:
    """Return the term that the expected cost adds to the loss; None without a table or without logits.

    table: the costs of the types.
    extra: slot -> logits; the expected cost is the mean by their softmax.
    weight: factor of the term.
    limit:
        1. None: the term is ``weight * cost``.
        2. A number: the expected cost may reach it; the term is ``weight * max(0, cost / limit - 1)``, a hinge.
        3. (low, high): below the window the term is ``weight * (1 - cost / low)``, above it as in 2.
    among: slot -> indices of the types that get a gradient, which is that of the expected cost of these types alone
        (ProxylessNAS). The value stays that of all types. None (default): all types of all slots.

    Raises:
        ValueError: a type has no cost, the types of every slot cost the same, or the window ends before it begins.
    """
    if table is None or extra is None:
        return None
    shares = {slot: torch.softmax(logits_of(space, slot, extra), 0) for slot in space.slots}
    cost = table.base + expected_cost(space, table.types, shares)
    _refuse_flat(table)
    if among is not None:
        logits = {slot: logits_of(space, slot, extra) for slot in among}
        pairs = {slot: _softmax_among(logits[slot], at) for slot, at in among.items()}
        drawn = expected_cost(space, table.types, pairs)
        cost = cost.detach() + drawn - drawn.detach()
    if limit is None:  # case 1
        return weight * cost
    low, high = window_of(limit)  # case 2, case 3
    below = torch.relu(1 - cost / low) if low else 0.0
    return weight * (torch.relu(cost / high - 1) + below)


def _softmax_among(logits: Tensor, at: Sequence[int]) -> Tensor:
    """Return the softmax over the entries ``at``; the others are 0."""
    index = torch.tensor(list(at), device=logits.device)
    return torch.zeros_like(logits).index_put((index,), torch.softmax(logits[index], 0))
