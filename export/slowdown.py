"""Why int8 is slower here: the layers of two artifacts of one network, fp32 and int8, set against each other."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from export.inspection import Inspection, Layer

NOISE = 0.02  # of the fp32 artifact's time; what a layer lost below that is not named


@dataclass(frozen=True)
class Slower:
    """A stretch of the network that takes longer in int8: its kernel and what follows up to the next one.

    ``added`` are kinds of layers that are there in int8 alone, such as conversions. Times are those of a profiler.
    """

    name: str
    kind: str
    fp32_us: float
    int8_us: float
    added: tuple[str, ...] = ()

    @property
    def lost_us(self) -> float:
        """By how much it is slower."""
        return self.int8_us - self.fp32_us

    def line(self) -> str:
        """One line for a person."""
        why = f", with {', '.join(self.added)} added" if self.added else ""
        return f"{self.name} ({self.kind}): {self.fp32_us:.3g} us in fp32, {self.int8_us:.3g} us in int8{why}"


def slower_layers(fp32: Inspection, int8: Inspection) -> tuple[Slower, ...]:
    """The stretches that are slower in int8, the worst first; none where int8 is faster everywhere.

    1. Both artifacts have as many kernels, in the order of the network: stretch against stretch, named by the kernel of
       the int8 artifact; what comes before the first one is a stretch as well.
    2. They have not, as the runtime fused them differently: kind of layer against kind of layer.
    3. A difference below 2 % of the fp32 artifact's time: not named.

    ValueError where a runtime told no times, or the two artifacts are not fp32 and int8 in one backend.
    """
    if (fp32.precision, int8.precision) != ("fp32", "int8") or fp32.backend != int8.backend:
        got = f"{fp32.backend} {fp32.precision} and {int8.backend} {int8.precision}"
        raise ValueError(f"slower_layers compares fp32 with int8 in one backend, got {got}")
    whole = fp32.microseconds
    if whole is None or int8.microseconds is None:
        raise ValueError(f"{fp32.backend} tells no times of its layers; nothing to compare")
    before, after = _stretches(fp32), _stretches(int8)
    if len(before) == len(after):
        found = [_against(a, b) for a, b in zip(before, after, strict=True)]
    else:
        found = [_against(_of(fp32, kind), _of(int8, kind)) for kind in _kinds(fp32, int8)]
    slower = [each for each in found if each.lost_us > NOISE * whole]
    return tuple(sorted(slower, key=lambda each: -each.lost_us))


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
        fp32_us=sum(layer.microseconds or 0.0 for layer in before),
        int8_us=sum(layer.microseconds or 0.0 for layer in after),
        added=tuple(f"{count} {kind}" for kind, count in extra.items()),
    )
