"""Derive one subnet from the architecture parameters of a supernet, inside a limit of one cost.

``derive_subnet(supernet, record, task, DerivedLimits("openvino-cpu", "2ms"))`` returns it; ``hnas-train --alone
derived`` trains it. Without a limit of a cost it is that of the search: ``limit`` in [train.options] of its recipe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from hnas import hw_profiles
from hnas.cost.counts import COUNTED, counted
from hnas.cost.roofline import roofline
from hnas.deployment.limits import DerivedLimits
from hnas.deployment.pricing import MeasuredLatency
from hnas.export.compiling.compiler import limited_compiler
from hnas.hw_profiles import Device
from hnas.recipes.searching import SearchWindow, limit_of_skips, window_of_search
from hnas.sampling.derive import Derived, Logits, NoneInside, derive, derive_inside, derive_measured
from hnas.sampling.draws import slot_types
from hnas.sampling.expected import type_costs
from hnas.space import Arch, Space
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.tasks import Task


def derive_subnet(
    supernet: Supernet, record: Mapping[str, Any], task: Task, limits: DerivedLimits | None = None
) -> Arch:
    """Return the most likely subnet of a trained supernet, or the one of least regret inside a limit.

    supernet: trained by a strategy with architecture parameters.
    record: the record of the supernet, which holds them, and the recipe.
    task: calibration and search images, to build and time a subnet.
    limits: limits that replace those of the recipe: of the cost in the loss, and of identities. None (default): those
        of the recipe. A latency is measured here if the device is this machine, also where the search predicted it.

    Raises:
        ValueError: the supernet has no architecture parameters or a broken record, the limits contradict each other,
            or no subnet that was priced is inside the limit.
        Unavailable: the runtime of the device is missing.
    """
    limits = limits or DerivedLimits()
    given, train = limits.cost(), _train_table(record)
    space, logits = supernet.space, _logits(supernet.space, record)
    most = limit_of_skips(train) if limits.max_skips is None else limits.max_skips
    searched = window_of_search(train) if given is None else None
    if given is not None:
        wanted = SearchWindow(limits.target or given[0], (0.0, given[1]), measured=True)
    elif searched is not None:
        wanted = searched
    else:
        return derive(space, logits, most)
    try:
        if wanted.cost not in COUNTED:
            return _on_device(Study(supernet, task), logits, wanted, most).arch
        return _counted(supernet, logits, wanted.cost, wanted.window, most).arch
    except NoneInside as error:
        if searched is None:
            raise
        origin = "the window is train.options.limit of the supernet, and a flag such as --max-weights replaces it"
        if wanted.cost not in COUNTED and not wanted.measured:
            origin += "; the search predicted latencies, train.options.measured = true measures them"
        raise NoneInside(f"{error}; {origin}") from None


@contextmanager
def measuring(study: Study, device: Device) -> Iterator[MeasuredLatency]:
    """Yield the measured latency of subnets on a device of this machine. Workers end with the context.

    Example: ``with measuring(study, hw_profiles.load("openvino-cpu")) as cost: cost(space.largest)``
    """
    with limited_compiler() as compiler:
        measured = MeasuredLatency(study, device, device.threads, compiler=compiler)
        try:
            yield measured
        finally:
            measured.close()


def _counted(
    supernet: Supernet, logits: Logits, cost: str, window: tuple[float, float], max_skips: int | None
) -> Derived:
    """Return the subnet of least regret in the window of a counted cost."""
    space = supernet.space
    count = counted(space, supernet.skeleton)[cost]

    def price(arch: Arch) -> float:
        return count(arch).value

    unit = count(space.largest).unit
    return derive_inside(space, logits, type_costs(space, price), price, window, max_skips, unit=unit, cheap=True)


def _on_device(study: Study, logits: Logits, wanted: SearchWindow, max_skips: int | None) -> Derived:
    """Return the subnet of least regret in the window. The roofline model proposes, and the device decides."""
    space, device, window = study.supernet.space, hw_profiles.load(wanted.cost), wanted.window
    predicted = roofline(space, study.supernet.skeleton, device, "fp32")

    def predict(arch: Arch) -> float:
        return predicted(arch).value

    table = type_costs(space, predict)
    if not device.local:
        return derive_inside(space, logits, table, predict, window, max_skips, unit="ms", cheap=True)
    with measuring(study, device) as measured:
        prices = (lambda arch: measured(arch).value), (lambda arch: measured.confirmed(arch).value)
        return derive_measured(space, logits, table, *prices, window, max_skips, unit="ms")


def _logits(space: Space, record: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the architecture parameters in the record of a supernet: slot -> [types]."""
    said = record.get("logits")
    if not isinstance(said, dict):
        mend = "train it with a strategy that has some: darts, gdas, msgdas, pdarts or proxylessnas"
        raise ValueError(f"the supernet has no architecture parameters; {mend}")
    try:
        rows = {slot: [float(said[slot][kind]) for kind in slot_types(space, slot)] for slot in space.slots}
    except (KeyError, TypeError, ValueError):
        raise ValueError("the logits of the supernet are not those of its space; train it again") from None
    return {slot: torch.tensor(row) for slot, row in rows.items()}


def _train_table(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return [train] of the recipe that the record holds; empty if it holds none."""
    said = record.get("recipe")
    train = said.get("train") if isinstance(said, dict) else None
    return train if isinstance(train, dict) else {}
