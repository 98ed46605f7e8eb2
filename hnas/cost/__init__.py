"""Costs of an architecture, with unit, interval and origin.

``roofline(space, supernet.skeleton, device, "fp32")(arch)`` returns a ``Price``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from hnas.space import Arch


@dataclass(frozen=True)
class Price:
    """A cost of one architecture.

    value: in ``unit``.
    unit: such as "ms" or "bytes".
    low: lower end of the interval of the value.
    high: upper end of the interval of the value.
    kind: "measured", "predicted" or "published".
    basis: of a prediction: what the interval rests on, in words.

    Example: ``Price(1.2, "ms", 1.1, 1.4, "predicted")``
    """

    value: float
    unit: str
    low: float
    high: float
    kind: str
    basis: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object whose keys are the fields."""
        return asdict(self)


Cost = Callable[[Arch], Price]
"""A function that returns the price of an architecture. ``Study(supernet, task, costs={"latency_ms": cost})``"""
