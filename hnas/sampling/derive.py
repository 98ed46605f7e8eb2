"""Derive one architecture from architecture parameters: ``derive(space, logits)``, or inside a window of a cost.

``derive_inside(space, logits, table, price, (0.0, 2.0))`` returns the architecture of least regret whose price is
inside the window. The *regret* of an architecture is the log-probability that it gives up, summed over the slots.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from statistics import fmean, linear_regression

import torch
from torch import Tensor, nn

from hnas.ops.skip import Skip
from hnas.sampling.draws import IDENTITY, logits_of, relax, slot_types
from hnas.sampling.expected import CostTable
from hnas.space import Arch, Space

_BINS = 200  # steps of the cost in the dynamic programme
_TRIES = 32  # architectures that are priced for a window
_MARGIN = 0.03  # of the ends of a window of measured prices
_CHEAP_TRIES = 256  # the same where a price is cheap
_CHEAP_KEPT = 64  # combinations of each step of the cost where a price is cheap

Logits = Mapping[str, Tensor]
Prices = Callable[[Arch], float]
_Combination = tuple[float, float, tuple[str, ...]]  # regret, cost, the type of each slot so far


class NoneInside(ValueError):
    """No architecture that was priced is inside the window."""


@dataclass(frozen=True)
class Derived:
    """Hold an architecture from ``derive_inside``.

    arch: a member; its sizes are the largest.
    regret: log-probability that it gives up against the most likely types.
    price: its cost as ``price`` returned it.
    """

    arch: Arch
    regret: float
    price: float


def derive(space: Space, logits: Logits, max_skips: int | None = None) -> Arch:
    """Return the member that takes the most likely type in every slot, at its largest sizes.

    logits: slot -> one logit for each of ``slot_types(space, slot)``.
    max_skips: largest number of slots that may have an identity (P-DARTS: 2 in a cell). They are the slots in which
        another type would cost the most probability. None (default): no limit.

    Raises:
        ValueError: a logit is missing or not finite, or too many slots have the identity alone.

    Example: ``derive(space, {"edges.0_1": torch.tensor([0.1, 2.0, 0.3, 0.0, 1.0]), ...})``
    """
    return relax(space, space.largest, _chosen(_regrets(space, logits, max_skips)))


def derive_inside(
    space: Space,
    logits: Logits,
    table: CostTable,
    price: Prices,
    window: tuple[float, float],
    max_skips: int | None = None,
    *,
    unit: str = "",
    cheap: bool = False,
) -> Derived:
    """Return the member of least regret whose price is inside the window, of those that are priced.

    1. The most likely member is returned if its price is inside.
    2. Otherwise the member of least regret whose *predicted* cost is inside is priced. The prediction is a line through
       the prices so far, over the sums of the table: the table may be of another scale than the prices.
    3. No prediction is inside: the member whose prediction is nearest to the window is priced.
    4. Steps 2 and 3 are repeated with members that have no price yet, until 32 have one or a price is inside.
    5. Cheap prices: after 32, members go on to be priced whose prediction is outside by at most twice the largest error
       of a prediction, until 256 have a price. After a price inside, these are members of less regret.

    table: costs of the types, from ``hnas.sampling.expected.type_costs``.
    price: the true cost of a member, such as its measured latency.
    window: (lowest, highest) allowed price.
    unit: of the prices, for the message (none).
    cheap: a price is computed, not measured (False).

    Raises:
        NoneInside: no member that was priced is inside the window; the message has the nearest one.
    """
    low, high = window
    regrets = _regrets(space, logits, max_skips)
    tried: dict[Arch, float] = {}
    best: Derived | None = None
    known = _combinations(regrets, table, _CHEAP_KEPT) if cheap else []
    wanted: dict[str, tuple[str, ...]] | None = _chosen(regrets)
    while wanted is not None and len(tried) < (_CHEAP_TRIES if cheap else _TRIES):
        arch = relax(space, space.largest, wanted)
        found = tried[arch] = price(arch)
        if low <= found <= high:  # each later one has less regret
            best = Derived(arch, sum(regrets[slot][kind] for slot, (kind,) in wanted.items()), found)
            if not cheap:
                break
        # As many combinations as were tried, and one more, stay for each cost.
        known = known if cheap else _combinations(regrets, table, len(tried) + 1)
        wanted = _next(space, regrets, known, table, window, tried, best.regret if best else math.inf)
    if best is None:
        raise NoneInside(_none_inside(window, tried, unit))
    return best


def derive_measured(
    space: Space,
    logits: Logits,
    table: CostTable,
    price: Prices,
    confirm: Prices,
    window: tuple[float, float],
    max_skips: int | None = None,
    *,
    unit: str = "",
) -> Derived:
    """Return the member of least regret in the window, where prices are measurements, which differ from each other.

    1. A price that is inside has to be confirmed. The confirmed price takes its place.
    2. The member is to be inside by ``_MARGIN`` at both ends of the window; where none is found, inside the window.

    Study E6 judges both rules.

    price, confirm: the cost of a member by a quick measurement, and by a careful one. Each is asked once of a member.

    Other arguments and errors as of ``derive_inside``.
    """
    quickly, carefully = cache(price), cache(confirm)

    def sure(ends: tuple[float, float]) -> Prices:
        def found(arch: Arch) -> float:
            quick = quickly(arch)
            return carefully(arch) if ends[0] <= quick <= ends[1] else quick

        return found

    narrowed = window[0] * (1 + _MARGIN), window[1] * (1 - _MARGIN)
    if narrowed[0] < narrowed[1]:
        with suppress(NoneInside):
            return derive_inside(space, logits, table, sure(narrowed), narrowed, max_skips, unit=unit)
    return derive_inside(space, logits, table, sure(window), window, max_skips, unit=unit)


def _regrets(space: Space, logits: Logits, max_skips: int | None) -> dict[str, dict[str, float]]:
    """Return slot -> type -> the log-probability that it gives up. Types that ``max_skips`` forbids are left out."""
    found: dict[str, dict[str, float]] = {}
    for slot in space.slots:
        own = logits_of(space, slot, logits).detach().double()
        best = torch.log_softmax(own, 0)
        found[slot] = dict(zip(slot_types(space, slot), (best.max() - best).tolist(), strict=True))
    if max_skips is not None:
        _limit_skips(found, skips_of(space), max_skips)
    return found


def _limit_skips(regrets: dict[str, dict[str, float]], skips: Mapping[str, Sequence[str]], most: int) -> None:
    """Take the identities out of all slots but the ``most`` ones in which their removal costs the most."""
    loss = {}
    for slot, own in regrets.items():
        others = [regret for kind, regret in own.items() if kind not in skips[slot]]
        identity = min((own[kind] for kind in skips[slot]), default=math.inf)
        if identity < math.inf:
            loss[slot] = (min(others) if others else math.inf) - identity
    kept = sorted(loss, key=lambda slot: -loss[slot])[:most]
    for slot in loss.keys() - set(kept):
        if math.isinf(loss[slot]):
            raise ValueError(f"more than {most} slots have no type but the identity; allow more skips")
        regrets[slot] = {kind: regret for kind, regret in regrets[slot].items() if kind not in skips[slot]}


def skips_of(space: Space) -> dict[str, tuple[str, ...]]:
    """Return slot -> its types that pass their input on unchanged."""
    with torch.device("meta"):
        net = space.union()
    return {slot: tuple(kind for kind in slot_types(space, slot) if _is_skip(net, slot, kind)) for slot in space.slots}


def _is_skip(net: nn.Module, slot: str, kind: str) -> bool:
    try:
        branch = net.get_submodule(f"{slot}.{kind}")
    except AttributeError:  # a slot without a branch
        return kind == IDENTITY
    leaves = [module for module in branch.modules() if not any(module.children())]
    return all(isinstance(leaf, Skip) for leaf in leaves)


def _chosen(regrets: Mapping[str, Mapping[str, float]]) -> dict[str, tuple[str, ...]]:
    return {slot: (min(own, key=lambda kind: own[kind]),) for slot, own in regrets.items()}


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return slope and offset of the prices over the predictions; the slope is above 0.

    points: (prediction, price) of every member so far. One point, or points that do not rise: the ratio of the means.
    """
    known = [point for point in points if math.isfinite(point[1])]  # without members that could not be built
    if not known:
        return 1.0, 0.0
    predictions, prices = (list(each) for each in zip(*known, strict=True))
    if len(set(predictions)) > 1:
        slope, offset = linear_regression(predictions, prices)
        if slope > 0:
            return slope, offset
    ratio = fmean(prices) / fmean(predictions) if fmean(predictions) else 0.0
    return (ratio, 0.0) if 0 < ratio < math.inf else (1.0, 0.0)


def _error(points: Sequence[tuple[float, float]], slope: float, offset: float) -> float:
    """Return the largest distance of a price from the line."""
    return max((abs(slope * at + offset - value) for at, value in points if math.isfinite(value)), default=0.0)


def _next(
    space: Space,
    slots: Iterable[str],
    combinations: Sequence[_Combination],
    table: CostTable,
    window: tuple[float, float],
    tried: Mapping[Arch, float],
    below: float,
) -> dict[str, tuple[str, ...]] | None:
    """Return the types to price next: of the least distance from the window, then of the least regret; None: no more.

    slots: of the types of a combination.
    window: limits of the price.
    below: each combination with less regret than this may be next. After ``_TRIES`` prices its distance from the window
        is at most twice the largest error of a prediction.
    """
    points = [(table.of(each), value) for each, value in tried.items()]
    slope, offset = _line(points)
    low, high = ((end - offset) / slope for end in window)
    margin = math.inf if len(tried) < _TRIES else 2 * _error(points, slope, offset) / slope
    taken = {tuple(arch.get(f"{slot}.op") for slot in slots) for arch in tried}
    left = [
        (max(low - cost, cost - high, 0.0), regret, kinds) for regret, cost, kinds in combinations if regret < below
    ]
    left = [each for each in left if each[0] <= margin and each[2] not in taken]
    for _, _, kinds in sorted(left, key=lambda each: each[:2]):
        wanted: dict[str, tuple[str, ...]] = {slot: (kind,) for slot, kind in zip(slots, kinds, strict=True)}
        if relax(space, space.largest, wanted) not in tried:
            return wanted
    return None


def _combinations(regrets: Mapping[str, Mapping[str, float]], table: CostTable, kept: int) -> list[_Combination]:
    """Return the combinations of types with the least regret, ``kept`` of them for each of ``_BINS`` costs.

    A dynamic programme over the slots (the multiple-choice knapsack problem).
    """
    costs = {slot: [table.types[slot][kind] for kind in own] for slot, own in regrets.items()}
    step = sum(max(own) - min(own) for own in costs.values()) / _BINS or 1.0
    states: list[_Combination] = [(0.0, table.base, ())]
    for slot, own in regrets.items():
        bins: dict[int, list[_Combination]] = {}
        for regret, cost, kinds in states:
            for kind, more in own.items():
                longer = (regret + more, cost + table.types[slot][kind], (*kinds, kind))
                bins.setdefault(round(longer[1] / step), []).append(longer)
        states = [each for found in bins.values() for each in sorted(found)[:kept]]
    return states


def _none_inside(window: tuple[float, float], tried: Mapping[Arch, float], unit: str) -> str:
    (low, high), unit = window, unit and f" {unit}"
    nearest = min(tried.values(), key=lambda found: max(low - found, found - high))
    what = f"none of the {len(tried)} networks that were priced is inside [{low:g}, {high:g}]{unit}"
    if not math.isfinite(nearest):
        return f"{what}; none could be built and run"
    return f"{what}; the nearest has {nearest:.3g}{unit}; widen the window"
