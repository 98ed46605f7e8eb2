"""The architecture parameters of a run: the cost in their loss, the network that they name, and a guard.

``make_pick(experiment, supernet, task)`` returns the training strategy with its options, and the parameters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property, partial
from types import ModuleType
from typing import Any

import torch
from torch import nn

from hnas import hw_profiles, strategies
from hnas.cost import Cost
from hnas.cost.counts import COUNTED, counted
from hnas.hw_profiles import Device
from hnas.journal import Journal
from hnas.recipes.sections import Experiment
from hnas.recipes.shrinking import predicted_costs
from hnas.sampling.derive import NoneInside, derive, derive_inside, skips_of
from hnas.sampling.draws import new_logits, slot_types
from hnas.sampling.expected import CostTable, window_of
from hnas.space import Arch, Space
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.tasks import Task
from hnas.training.loop import Pick

Logits = dict[str, dict[str, float]]  # slot -> type -> logit
MeasureLatency = Callable[[Study, Device], AbstractContextManager[Cost]]
_COST_OPTIONS = ("cost", "measured")  # options of a recipe that choose the table for the option ``latency``
_MEASURED = "measured_ms"  # a key of its own in the journal: shrinking has a predicted "latency_ms"


@dataclass(frozen=True)
class Measuring:
    """Define how a run measures latencies.

    open: opens the measurement of subnets on a device of this machine; None: the caller has no compiler.
    journal: keeps the latencies, so that a resumed run has the same.
    say: called with a line before the first measurement; None: nobody listens.
    """

    open: MeasureLatency | None
    journal: Journal
    say: Callable[[str], None] | None = None


def make_pick(
    experiment: Experiment, supernet: Supernet, task: Task, measuring: Measuring | None = None, *, alone: bool = False
) -> tuple[Pick, dict[str, nn.Parameter]]:
    """Return the training strategy with its options, and its architecture parameters.

    measuring: how latencies are measured that the recipe wants to be measured; None: they are predicted, as is enough
        to time a step.
    alone: the supernet is one subnet, which is trained without a strategy (False).

    Raises:
        ValueError: the task has no images for the architecture parameters, the cost cannot be used, or every network
            is above its limit.
    """
    name = "alone" if alone else experiment.train.strategy
    strategy, space = strategies.load(name), supernet.space
    options = {} if alone else {key: value for key, value in experiment.options.items() if key not in _COST_OPTIONS}
    extra: dict[str, nn.Parameter] = strategy.extra(space) if hasattr(strategy, "extra") else {}
    if (split := getattr(strategy, "SPLIT", None)) not in (None, *task.splits):
        mend = f"give [data] {split} = 0.5, the share of the training images that it takes"
        raise ValueError(f"the strategy {name!r} trains architecture parameters on images of their own; {mend}")
    if not alone and (cost := _cost_in_loss(experiment)) is not None:
        study = Study(supernet, task)
        options["latency"] = table = _cost_table(strategy, cost, study, measuring)
        limit, rough = options.get("limit"), cost[2] and measuring is None  # predicted, where the run will measure
        if limit is not None and not rough:
            _check_limit(study, cost[0], table, window_of(limit), None if measuring is None else measuring.say)
    if extra:
        options["extra"] = extra
    return partial(strategy.pick, **options), extra


def _cost_in_loss(experiment: Experiment) -> tuple[str, Device | None, bool] | None:
    """Return the cost that a recipe names, its device, and whether it is measured. None: it names none."""
    options = experiment.options
    if (name := options.get("cost")) in COUNTED:
        return name, None, False
    device = options.get("latency")
    if not isinstance(device, str):
        return None
    return "latency_ms", hw_profiles.load(device), bool(options.get("measured"))


def _cost_table(
    strategy: ModuleType, cost: tuple[str, Device | None, bool], study: Study, measuring: Measuring | None
) -> Any:
    """Return the costs of all types, as the strategy counts them."""
    name, device, measured = cost
    space = study.supernet.space
    if device is None:
        study.costs = counted(space, study.supernet.skeleton)
        return strategy.latencies(study, space, name)
    if not measured or measuring is None:
        study.costs = predicted_costs(study.supernet, device.name)
        return strategy.latencies(study, space, name)
    if measuring.open is None:
        mend = "train with hnas-train, or leave train.options.measured out"
        raise ValueError(f"this call of run_recipe cannot measure latencies; {mend}")
    study.journal = measuring.journal
    if measuring.say is not None:
        networks = 1 + sum(len(slot_types(space, slot)) - 1 for slot in space.slots)
        measuring.say(f"measuring the latency of {networks} networks on {device.name}")
    with measuring.open(study, device) as price:
        study.costs = {_MEASURED: price}
        return strategy.latencies(study, space, _MEASURED)


def _check_limit(
    study: Study,
    name: str,
    table: CostTable,
    window: tuple[float, float],
    say: Callable[[str], None] | None,
) -> None:
    """Raise ValueError if every network is above or below the window of the cost ``name``; say it of a rough latency.

    A counted cost may differ from the sum of its types, so networks are counted too.
    """
    low, high = window
    dearest = table.base + sum(max(own.values()) for own in table.types.values())
    if table.base <= high and dearest >= low:
        return
    space = study.supernet.space
    if name in COUNTED:

        def count(arch: Arch) -> float:
            return study.price(arch, name).value

        unit = study.price(space.largest, name).unit
        try:
            derive_inside(space, new_logits(space), table, count, window, unit=unit, cheap=True)
        except NoneInside as error:
            raise ValueError(f"train.options.limit: {error}") from None
        return
    known = study.price(space.largest, next(iter(study.costs)))
    above = table.base > high
    which, total, mend = ("cheapest", table.base, "raise") if above else ("dearest", dearest, "lower")
    where = f"{'above' if above else 'below'} [{low:g}, {high:g}] ms"
    what = f"the {which} types of all slots cost {total:.3g} ms ({known.kind}), {where}"
    line = f"train.options.limit: {what}; {mend} the limit"
    if total * known.low / known.value > high or total * known.high / known.value < low:
        raise ValueError(line)
    if say is not None:
        say(line)


def name_logits(space: Space, extra: Mapping[str, nn.Parameter]) -> Logits:
    """Return the architecture parameters as JSON: slot -> type -> logit, rounded to six digits."""
    return {
        slot: {kind: round(x, 6) for kind, x in zip(slot_types(space, slot), values.detach().tolist(), strict=True)}
        for slot, values in extra.items()
    }


def record_of(space: Space, logits: Logits, train: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a search has found, for its record: logits and derived network; empty without logits.

    train: [train] of the recipe; the derived network has at most as many identities as it allows.
    """
    if not logits:
        return {}
    values = {slot: torch.tensor(list(own.values())) for slot, own in logits.items()}
    return {"logits": logits, "derived": derive(space, values, limit_of_skips(train)).to_json()}


def limit_of_skips(train: Mapping[str, Any]) -> int | None:
    """Return the largest number of identities of a derived network; None: no limit.

    train: [train] of a recipe: its ``max_skips``, or else the ``MAX_SKIPS`` of its strategy.
    """
    if isinstance(said := train.get("max_skips"), int) and said >= 0:
        return said
    name = train.get("strategy")
    return getattr(strategies.load(name), "MAX_SKIPS", None) if name in strategies.names() else None


@dataclass(frozen=True)
class SearchWindow:
    """Hold the limit of the cost in the loss of a search.

    cost: a counted cost, or the name of a device, whose latency in ms is meant.
    window: the lowest and the highest cost.
    measured: whether the search measured the latencies; otherwise the roofline model predicted them.
    """

    cost: str
    window: tuple[float, float]
    measured: bool


def window_of_search(train: Mapping[str, Any]) -> SearchWindow | None:
    """Return the limit of the cost in the loss of a search; None: it has none.

    train: [train] of a recipe: its options ``cost``, ``latency``, ``measured`` and ``limit``.

    Raises:
        ValueError: the options are not those of a recipe.
    """
    options = train.get("options") or {}
    try:
        limit, counts = options.get("limit"), options.get("cost") in COUNTED
        cost = options["cost"] if counts else options.get("latency")
        if cost is None or limit is None:
            return None
        low, high = window_of(tuple(limit) if isinstance(limit, list) else limit)
        if not isinstance(cost, str):
            raise TypeError
    except (AttributeError, TypeError, ValueError):
        raise ValueError("train.options in the record of the supernet are not those of a search; train again") from None
    return SearchWindow(cost, (low, high), bool(options.get("measured")))


@dataclass
class SkipWatch:
    """Count the most likely types of a search; say once if the identity has too many slots (skip collapse).

    study: the search; its space may shrink.
    logits: the architecture parameters, which follow the space.
    most: the largest number of identities of the derived network; None: half of the slots that offer an identity.
    steps, per_epoch: steps of the run, and of an epoch.
    say: called with the line; None: nobody listens.

    DARTS+ (arXiv 1909.06035) ends a search when a cell has too many. P-DARTS (arXiv 1904.12760) limits derived cells.
    """

    study: Study
    logits: Mapping[str, nn.Parameter]
    most: int | None
    steps: int
    per_epoch: int
    say: Callable[[str], None] | None = None
    _said: bool = field(default=False, repr=False)

    def __call__(self, done: int, _: float = 0.0) -> None:
        """Take note of a finished step; at the end of an epoch say the line if it holds. ``done``: steps, from 1."""
        if self._said or self.say is None or (done % self.per_epoch and done != self.steps):
            return
        skips, places = self.count_skips(), sum(map(bool, self._identities.values()))
        limit = places / 2 if self.most is None else self.most
        if skips <= limit:
            return
        self._said = True
        what = f"epoch {done / self.per_epoch:.3g}: the identity is the most likely type of {skips} of {places} slots"
        if self.most is None:
            self.say(f"{what} (skip collapse); search for fewer epochs, or derive with at most N: --max-skips N")
        else:
            self.say(f"{what}, the derived network has at most {self.most}; a search of fewer epochs may keep others")

    def count_types(self) -> dict[str, int]:
        """Return type -> number of slots in which it is the most likely. A slot with equal types does not count."""
        return dict(sorted(Counter(self._likely().values()).items()))

    def count_skips(self) -> int:
        """Return the number of slots whose most likely type is an identity."""
        return sum(kind in self._identities[slot] for slot, kind in self._likely().items())

    @cached_property
    def _identities(self) -> dict[str, tuple[str, ...]]:
        return skips_of(self.study.supernet.space)

    def _likely(self) -> dict[str, str]:
        """Return slot -> its most likely type, for slots that have one."""
        found = {}
        for slot, values in self.logits.items():
            own = values.detach().tolist()
            if own.count(best := max(own)) == 1:
                found[slot] = slot_types(self.study.space, slot)[own.index(best)]
        return found
