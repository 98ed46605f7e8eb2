"""Hold and check the limits of a derived subnet, without torch.

``DerivedLimits("openvino-cpu", "2ms").cost()`` is ("latency", 2.0).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hnas import hw_profiles
from hnas.deployment.bounds import Bound
from hnas.units import parse_size_bytes

_LARGEST = 2**53  # a float holds every whole number up to this


@dataclass(frozen=True)
class DerivedLimits:
    """Hold the limits of a derived subnet. One cost at most has a limit.

    target: the device whose latency is limited; measured if it is this machine, otherwise predicted.
    max_latency: the limit on ``target``, for instance "2ms".
    max_weights: largest number of weights.
    max_macs: largest number of multiply-accumulates for one example.
    max_memory: largest memory for one example in fp32, for instance "2MB" (``hnas.cost.counts.counted``).
    max_skips: largest number of slots with an identity; None (default): that of the training.

        DerivedLimits("openvino-cpu", "2ms")
    """

    target: str | None = None
    max_latency: str | None = None
    max_weights: int | None = None
    max_macs: int | None = None
    max_memory: str | None = None
    max_skips: int | None = None

    def cost(self) -> tuple[str, float] | None:
        """Return the cost that has a limit, and the limit in ms, millions or MB; None: no cost has one.

        Raises:
            ValueError: a limit is not understood, several costs have one, or that of a latency has no known device.
        """
        if (self.target is None) != (self.max_latency is None):
            raise ValueError("a limit of latency needs a device: give both --target and --max-latency, or neither")
        if self.target is not None:
            hw_profiles.load(self.target)
        if self.max_skips is not None and self.max_skips < 0:
            raise ValueError(f"--max-skips is {self.max_skips}; it is 0 or more")
        found = [(name, limit) for name, limit in self._limits() if limit is not None]
        if len(found) > 1:
            raise ValueError(f"a derived subnet has one limit; {' and '.join(name for name, _ in found)} have one each")
        return found[0] if found else None

    def _limits(self) -> Iterator[tuple[str, float | None]]:
        yield "latency", None if self.max_latency is None else Bound.parse("latency_ms", self.max_latency).limit
        yield "weights", None if self.max_weights is None else _millions("weights", self.max_weights)
        yield "macs", None if self.max_macs is None else _millions("macs", self.max_macs)
        yield "memory", None if self.max_memory is None else parse_size_bytes(self.max_memory) / 1e6


def _millions(name: str, count: int) -> float:
    if count > _LARGEST:
        raise ValueError(f"--max-{name} is above 2**53, which no network reaches")
    if count <= 0:
        raise ValueError(f"the limit of {name} is {count}; it is above 0")
    return count / 1e6
