"""Derive one subnet from the architecture parameters of a supernet, with its latency measured on the device.

``derive_subnet(supernet, record, task, "openvino-cpu", "2ms")`` returns it; ``hnas-train --alone derived`` trains it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hnas import hw_profiles, strategies
from hnas.cost.roofline import roofline
from hnas.deployment.bounds import Bound
from hnas.deployment.pricing import MeasuredLatency
from hnas.export.compiling.compiler import limited_compiler
from hnas.hw_profiles import Device
from hnas.sampling.derive import Derived, Logits, derive, derive_inside
from hnas.sampling.draws import slot_types
from hnas.sampling.expected import type_costs
from hnas.space import Arch, Space
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.tasks import Task


def derive_subnet(
    supernet: Supernet, record: Mapping[str, Any], task: Task, target: str | None = None, max_latency: str | None = None
) -> Arch:
    """Return the most likely subnet of a trained supernet, or the one of least regret inside a limit of latency.

    supernet: trained by a strategy with architecture parameters.
    record: the record of the supernet, which holds them.
    task: calibration and search images, to build and time a subnet.
    target: the device whose latency is limited; measured if it is this machine, otherwise predicted.
    max_latency: the limit, for instance "2ms". None: no limit.

    Raises:
        ValueError: the supernet has no architecture parameters, only one of ``target`` and ``max_latency`` is given, or
            no subnet that was priced is inside the limit.
        Unavailable: the runtime of the device is missing.
    """
    if (target is None) != (max_latency is None):
        raise ValueError("a limit of latency needs a device: give both --target and --max-latency, or neither")
    logits = _logits(supernet.space, record)
    most = getattr(strategies.load(_strategy(record)), "MAX_SKIPS", None)
    if target is None or max_latency is None:
        return derive(supernet.space, logits, most)
    window = (0.0, Bound.parse("latency_ms", max_latency).limit)
    return _inside(Study(supernet, task), logits, hw_profiles.load(target), window, most).arch


def _inside(
    study: Study, logits: Logits, device: Device, window: tuple[float, float], max_skips: int | None
) -> Derived:
    """Return the subnet of least regret in the window. The roofline model proposes, and the device decides."""
    space = study.supernet.space
    predicted = roofline(space, study.supernet.skeleton, device, "fp32")
    table = type_costs(space, lambda arch: predicted(arch).value)
    if not device.local:
        return derive_inside(space, logits, table, lambda arch: predicted(arch).value, window, max_skips)
    with limited_compiler() as compiler:
        measured = MeasuredLatency(study, device, device.threads, compiler=compiler)
        try:
            return derive_inside(space, logits, table, lambda arch: measured(arch).value, window, max_skips)
        finally:
            measured.close()


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


def _strategy(record: Mapping[str, Any]) -> str:
    """Return the training strategy that the record names."""
    said = record.get("recipe")
    train = said.get("train") if isinstance(said, dict) else None
    name = train.get("strategy") if isinstance(train, dict) else None
    return name if name in strategies.names() else "proxylessnas"
