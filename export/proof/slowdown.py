"""Explain why int8 is slower than float: compare the layers of two artifacts of one network."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

from hnas.export.proof.inspection import Inspection, Layer

_SHOWN = 4  # layers that are named in a line
NOISE = 0.02  # of the float artifact's time; smaller losses are not reported
_FLOATS = ("fp32", "fp16", "bf16")


@dataclass(frozen=True)
class SlowerLayer:
    """Describe a stretch of the network that is slower in int8: a kernel, and the layers up to the next kernel.

    float_us, int8_us: microseconds in the profiler.
    added: number and kind of layers that only int8 has, such as conversions.
    """

    name: str
    kind: str
    float_us: float
    int8_us: float
    added: tuple[str, ...] = ()

    @property
    def lost_us(self) -> float:
        """Return the microseconds by which int8 is slower."""
        return self.int8_us - self.float_us

    def line(self) -> str:
        """Return one line for a person."""
        why = f", with {', '.join(self.added)} added" if self.added else ""
        times = f"{self.float_us / 1e3:.3g} ms in float, {self.int8_us / 1e3:.3g} ms in int8"
        kind = "" if self.name.endswith(self.kind) else f" ({self.kind})"
        return f"{self.name}{kind}: {times}{why}"


@dataclass(frozen=True)
class Slowdown:
    """Record that an int8 artifact is not faster than a float artifact on this device.

    against: the precision of the float artifact.
    ratio: the speed-up of int8 over the float artifact; below 1 if int8 is slower.
    layers: the stretches that lose time, the slowest first; empty if the runtime reports no times, or no stretch is the
        cause.
    attainable: the result of the function ``attainable``; None if unknown.

    Raises:
        ValueError: the ratio is not positive.
    """

    against: str
    ratio: float
    layers: tuple[SlowerLayer, ...] = ()
    attainable: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.ratio < math.inf:
            raise ValueError(f"ratio is {self.ratio:g}, expected more than 0")

    def headline(self) -> str:
        """Return the ratio in a sentence, without its causes."""
        how = "slower" if self.ratio < 1 - NOISE else "no faster"
        return f"int8 is {how} here than {self.against} (x{self.ratio:.2f})"

    def line(self) -> str:
        """Return one line for a person."""
        more = len(self.layers) - _SHOWN
        named = [*(each.line() for each in self.layers[:_SHOWN]), *([f"{more} more"] if more > 0 else [])]
        return ": ".join(filter(None, (self.headline(), "; ".join(named))))


def slower_layers(before: Inspection, int8: Inspection) -> tuple[SlowerLayer, ...]:
    """Return the stretches that are slower in int8 than in float, the slowest first.

    1. Both artifacts have the same number of kernels, in the order of the network: stretches are compared in order, and
       named by the kernel of the int8 artifact. The layers before the first kernel are a stretch, too.
    2. The numbers differ, because the runtime fused them differently: kinds of layers are compared.
    3. A difference below 2 % of the float artifact's time: left out.

    before: the inspection of the float artifact.
    int8: the inspection of the int8 artifact.

    Raises:
        ValueError: a runtime reported no times, or the artifacts are not float and int8 of one backend.

    Example: ``slower_layers(export.layers("out/fp32"), export.layers("out/int8"))``
    """
    found = _compared(before, int8)
    # case 3
    slower = [each for each in found if each.lost_us > NOISE * sum(each.float_us for each in found)]
    return tuple(sorted(slower, key=lambda each: -each.lost_us))


def attainable(before: Inspection, int8: Inspection) -> float:
    """Return the time of the network if each stretch ran in its faster precision, as a fraction of ``before``'s time.

    Conversions between the precisions are not counted, so the result is a lower bound for mixed precision.

    Raises:
        ValueError: in the same cases as ``slower_layers``.
    """
    found = _compared(before, int8)
    return sum(min(each.float_us, each.int8_us) for each in found) / sum(each.float_us for each in found)


def _compared(before: Inspection, int8: Inspection) -> list[SlowerLayer]:
    """Return every stretch, or every kind of layer, in both precisions."""
    if before.precision not in _FLOATS or int8.precision != "int8" or before.backend != int8.backend:
        got = f"{before.backend} {before.precision} and {int8.backend} {int8.precision}"
        raise ValueError(f"slower_layers compares float with int8 in one backend, got {got}")
    if not before.microseconds or int8.microseconds is None:
        raise ValueError(f"{before.backend} reports no times of its layers; nothing to compare")
    first, second = _stretches(before), _stretches(int8)
    if len(first) == len(second):  # case 1
        return [_against(a, b) for a, b in zip(first, second, strict=True)]
    kinds = _kinds(before, int8)  # case 2
    return [replace(_against(_of(before, kind), _of(int8, kind)), name=f"every {kind}") for kind in kinds]


def _stretches(inspection: Inspection) -> list[list[Layer]]:
    """Return the layers before the first kernel, then each kernel with the layers after it."""
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
    """Return a kind of layer without ONNX Runtime's prefix for its quantised form: QLinearConv is a Conv."""
    for prefix in ("QLinear", "Q"):
        if kind.startswith(prefix) and kind[len(prefix) : len(prefix) + 1].isupper():
            return kind.removeprefix(prefix)
    return kind


def _against(before: list[Layer], after: list[Layer]) -> SlowerLayer:
    extra = Counter(_plain(layer.kind) for layer in after) - Counter(_plain(layer.kind) for layer in before)
    first = next(iter(after or before), None)
    return SlowerLayer(
        name="input" if first is None else first.name,
        kind="" if first is None else _plain(first.kind),
        float_us=sum(layer.microseconds or 0.0 for layer in before),
        int8_us=sum(layer.microseconds or 0.0 for layer in after),
        added=tuple(f"{count} {kind}" for kind, count in extra.items()),
    )
