"""Costs: a number for an architecture, that says how it was come by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from hnas.space import Arch


@dataclass(frozen=True)
class Price:
    """value in ``unit`` within [low, high]; kind: "measured", "predicted" or "published"."""

    value: float
    unit: str
    low: float
    high: float
    kind: str

    def to_json(self) -> dict[str, Any]:
        """As a JSON object whose keys are the fields."""
        return asdict(self)


Cost = Callable[[Arch], Price]
