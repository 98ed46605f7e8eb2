"""Why int8 is slower here: the layers of two artifacts of one network, float and int8, set against each other."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

from hnas.export.proof.inspection import Inspection, Layer

NOISE = 0.02  # of the float artifact's time; what a layer lost below that is not named
_FLOATS = ("fp32", "fp16", "bf16")


@dataclass(frozen=True)
class Slower:
    """A stretch of the network that takes longer in int8: its kernel and what follows up to the next one.

    ``added`` are kinds of layers that are there in int8 alone, such as conversions. Times are those of a profiler.
    """

    name: str
    kind: str
    float_us: float
    int8_us: float
    added: tuple[str, ...] = ()

    @property
    def lost_us(self) -> float:
        """By how much it is slower."""
        return self.int8_us - self.float_us

    def line(self) -> str:
        """One line for a person."""
        why = f", with {', '.join(self.added)} added" if self.added else ""
        times = f"{self.float_us / 1e3:.3g} ms in float, {self.int8_us / 1e3:.3g} ms in int8"
        kind = "" if self.name.endswith(self.kind) else f" ({self.kind})"
        return f"{self.name}{kind}: {times}{why}"


@dataclass(frozen=True)
class Slowdown:
    """An int8 artifact that is no faster here than the one in ``against``: ``ratio`` is its speed by that one's.

    ``layers`` are the stretches that lost most, empty where the runtime tells no times or no single one is to blame;
    ``attainable`` is the time, as a part of that in ``against``, if every stretch ran in the precision that is faster
    for it, without what a change between them costs.
    """

    against: str
    ratio: float
    layers: tuple[Slower, ...] = ()
    attainable: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.ratio < math.inf:
            raise ValueError(f"ratio is {self.ratio:g}, expected more than 0")

    def headline(self) -> str:
        """The fact without its causes."""
        how = "slower" if self.ratio < 1 - NOISE else "no faster"
        return f"int8 is {how} here than {self.against} (x{self.ratio:.2f})"

    def line(self) -> str:
        """One line for a person."""
        return ": ".join(filter(None, (self.headline(), "; ".join(each.line() for each in self.layers))))


def slower_layers(before: Inspection, int8: Inspection) -> tuple[Slower, ...]:
    """The stretches that are slower in int8 than ``before``, in float, the worst first; none where int8 is faster.

    1. Both artifacts have as many kernels, in the order of the network: stretch against stretch, named by the kernel of
       the int8 artifact; what comes before the first one is a stretch as well.
    2. They have not, as the runtime fused them differently: kind of layer against kind of layer, all that there are.
    3. A difference below 2 % of the float artifact's time: not named.

    ValueError where a runtime told no times, or the two artifacts are not float and int8 in one backend.
    """
    found = _set_against(before, int8)
    slower = [each for each in found if each.lost_us > NOISE * sum(each.float_us for each in found)]
    return tuple(sorted(slower, key=lambda each: -each.lost_us))


def attainable(before: Inspection, int8: Inspection) -> float:
    """The time if every stretch ran in the faster of the two precisions, as a part of ``before``'s.

    Nothing is counted for a change between them, so no mixed artifact is faster. ValueError as for ``slower_layers``.
    """
    found = _set_against(before, int8)
    return sum(min(each.float_us, each.int8_us) for each in found) / sum(each.float_us for each in found)


def _set_against(before: Inspection, int8: Inspection) -> list[Slower]:
    """Every stretch, or every kind of layer, in both precisions."""
    if before.precision not in _FLOATS or int8.precision != "int8" or before.backend != int8.backend:
        got = f"{before.backend} {before.precision} and {int8.backend} {int8.precision}"
        raise ValueError(f"slower_layers compares float with int8 in one backend, got {got}")
    if not before.microseconds or int8.microseconds is None:
        raise ValueError(f"{before.backend} tells no times of its layers; nothing to compare")
    first, second = _stretches(before), _stretches(int8)
    if len(first) == len(second):
        return [_against(a, b) for a, b in zip(first, second, strict=True)]
    kinds = _kinds(before, int8)
    return [replace(_against(_of(before, kind), _of(int8, kind)), name=f"every {kind}") for kind in kinds]


def _stretches(inspection: Inspection) -> list[list[Layer]]:
    """The layers before the first kernel, then each kernel with what follows it."""
    found: list[list[Layer]] = [[]]
    for layer in inspection.layers:
        if layer.role == "kernel":
            found.append([])
        found[-1].append(layer)
    return found


def _kinds(*inspections: Inspection) -> list[str]:
    return list(dict.fromkeys(_plain(layer.kind) for each in inspections for layer in each.layers))


def _of(inspection: Inspection, kind: str) -> list[Layer]:
    return [layer for layer in inspection.layers if _plain(layer.kind) == kind]


def _plain(kind: str) -> str:
    """A kind of layer without ONNX Runtime's words for its quantised form: QLinearConv is a Conv."""
    for prefix in ("QLinear", "Q"):
        if kind.startswith(prefix) and kind[len(prefix) : len(prefix) + 1].isupper():
            return kind.removeprefix(prefix)
    return kind


def _against(before: list[Layer], after: list[Layer]) -> Slower:
    extra = Counter(_plain(layer.kind) for layer in after) - Counter(_plain(layer.kind) for layer in before)
    first = next(iter(after or before), None)
    return Slower(
        name="input" if first is None else first.name,
        kind="" if first is None else _plain(first.kind),
        float_us=sum(layer.microseconds or 0.0 for layer in before),
        int8_us=sum(layer.microseconds or 0.0 for layer in after),
        added=tuple(f"{count} {kind}" for kind, count in extra.items()),
    )
