"""Derive one subnet from the architecture parameters of a supernet, with its latency measured on the device.

``derive_subnet(Path("searched"), None, "openvino-cpu", "2ms")`` returns it. ``hnas-train --alone derived`` trains it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hnas import hw_profiles, strategies
from hnas.cost.roofline import roofline
from hnas.deployment.bounds import Bound
from hnas.deployment.build import limited_compiler
from hnas.deployment.pricing import MeasuredLatency
from hnas.deployment.source import SupernetSource, open_source
from hnas.sampling.derive import Derived, derive, derive_inside
from hnas.sampling.draws import slot_types
from hnas.sampling.expected import type_costs
from hnas.space import Arch, Space
from hnas.study import Study


def derive_subnet(
    folder: Path, data: Path | None = None, target: str | None = None, max_latency: str | None = None
) -> Arch:
    """Return the most likely subnet of a trained supernet, or the one of least regret inside a limit of latency.

    folder: the folder of the supernet, trained by a strategy with architecture parameters.
    data: the images that the supernet was trained on; needed to measure. None: those that are shipped with hnas.
    target: the device whose latency is limited; measured if it is this machine, otherwise predicted.
    max_latency: the limit, for instance "2ms". None: no limit.

    Raises:
        ValueError: the supernet has no architecture parameters, only one of ``target`` and ``max_latency`` is given, or
            no subnet that was priced is inside the limit.
        FileNotFoundError: a folder or file is missing.
    """
    if (target is None) != (max_latency is None):
        raise ValueError("a limit of latency needs a device: give both --target and --max-latency, or neither")
    source = open_source(folder, data)
    space, logits = source.supernet.space, _logits(source, folder)
    most = getattr(strategies.load(_strategy(source.record)), "MAX_SKIPS", None)
    if target is None or max_latency is None:
        return derive(space, logits, most)
    window = (0.0, Bound.parse("latency_ms", max_latency).limit)
    return _inside(source, logits, target, window, most).arch


def _inside(
    source: SupernetSource,
    logits: Mapping[str, torch.Tensor],
    target: str,
    window: tuple[float, float],
    most: int | None,
) -> Derived:
    """Return the subnet of least regret in the window. The roofline model proposes, and the device decides."""
    device, space = hw_profiles.load(target), source.supernet.space
    predicted = roofline(space, source.supernet.skeleton, device, "fp32")
    table = type_costs(space, lambda arch: predicted(arch).value)
    if not device.local:
        return derive_inside(space, logits, table, lambda arch: predicted(arch).value, window, most)
    study = Study(source.supernet, source.task)
    with limited_compiler() as compiler:
        measured = MeasuredLatency(study, device, device.threads, compiler=compiler)
        try:
            return derive_inside(space, logits, table, lambda arch: measured(arch).value, window, most)
        finally:
            measured.close()


def _logits(source: SupernetSource, folder: Path) -> dict[str, torch.Tensor]:
    """Return the architecture parameters in the record of the supernet: slot -> [types]."""
    said: Any = source.record.get("logits")
    space: Space = source.supernet.space
    if not isinstance(said, dict):
        mend = "train it with a strategy that has some: darts, gdas, msgdas, pdarts or proxylessnas"
        raise ValueError(f"the supernet in {folder} has no architecture parameters; {mend}")
    try:
        rows = {slot: [float(said[slot][kind]) for kind in slot_types(space, slot)] for slot in space.slots}
        return {slot: torch.tensor(row) for slot, row in rows.items()}
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{folder / 'supernet.json'}: the logits are not those of its space; train it again") from None


def _strategy(record: Mapping[str, Any]) -> str:
    """Return the training strategy that the record names."""
    said = record.get("recipe")
    train = said.get("train") if isinstance(said, dict) else None
    name = train.get("strategy") if isinstance(train, dict) else None
    return name if name in strategies.names() else "proxylessnas"
