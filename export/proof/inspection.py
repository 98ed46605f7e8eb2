"""Describe how a runtime executes an artifact: its layers, their precision and time, and what is not fused.

``hnas.export.layers(artifact)`` returns an ``Inspection``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from hnas.export.device.records import JSON, decode, encode

Role: TypeAlias = Literal["kernel", "activation", "norm", "arithmetic", "layout", "quantise"]

# By precision of an artifact: the precisions in which its kernels are expected to compute.
STATED: Mapping[str, tuple[str, ...]] = {
    "fp32": ("f32",),
    "fp16": ("f16",),
    "bf16": ("bf16",),
    "int8": ("i8", "u8"),
    "w8": ("f32",),
}
# By role: the endings of the kinds' names, in lower case. Runtimes add prefixes. Any other kind is a kernel.
_ROLES: Mapping[Role, tuple[str, ...]] = {
    "quantise": ("quantizelinear", "quantize", "dequantize", "fakequantize"),
    "layout": ("reorder", "reorderinput", "reorderoutput", "reformat", "transpose", "reshape", "shuffle", "noop")
    + ("squeeze", "unsqueeze", "flatten", "convert", "cast", "permute"),
    "norm": ("normalization", "mvn", "layernorm"),
    "activation": ("relu", "clip", "sigmoid", "swish", "gelu", "tanh", "elu", "relu6", "logistic", "minmax", "erf")
    + ("activation", "hard_swish", "math"),
    "arithmetic": ("add", "sub", "mul", "div", "eltwise", "elementwise", "subgraph", "pow", "sqrt", "rsqrt")
    + ("squared_difference", "neg", "abs", "maximum", "minimum"),
}


@dataclass(frozen=True)
class Layer:
    """Describe one layer as the runtime executes it.

    kind, implementation: the runtime's names for the operator, and for the code that runs it.
    role: what the layer does, as `role_of` derives it from the kind.
    precision: precision of its arithmetic: f32, f16, bf16, i8, u8; empty if unknown.
    microseconds: time of one call; None if the runtime does not report it.
    parts: the layers of the model file that are fused in this layer, if the runtime reports them.
    """

    name: str
    kind: str
    role: Role
    precision: str = ""
    microseconds: float | None = None
    implementation: str = ""
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inspection:
    """Describe the layers of an artifact, in the order in which they run.

    runs: number of calls over which the layers were timed.
    fuses: a sentence on the operators that the runtime can fuse.
    source: a warning about an artifact made from an ONNX file, else empty.

    Times come from a profiler, which adds time itself. Compare layers with them; use ``measure`` for a latency.

    Example: ``print(*export.layers("out/int8").findings, sep="; ")``
    """

    backend: str
    precision: str
    threads: int
    runs: int
    layers: tuple[Layer, ...]
    fuses: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    source: str = ""

    @property
    def microseconds(self) -> float | None:
        """Return the time of all layers; None if the runtime reports no times."""
        return _total(self.layers)

    def of(self, role: Role) -> tuple[Layer, ...]:
        """Return the layers of one role."""
        return tuple(layer for layer in self.layers if layer.role == role)

    @property
    def findings(self) -> tuple[str, ...]:
        """Return sentences on layers that could be avoided.

        These are layers that are not fused, only move or convert data, or compute in another precision than the
        artifact's. The last sentence is ``source``.
        """
        found = (*self._alone(), self._quantised(), self._moved(), *self._other_precision(), self.source)
        return tuple(filter(None, found))

    def _alone(self) -> list[str]:
        roles: tuple[Role, ...] = ("norm", "activation", "arithmetic")
        found = [self._say(self.of(role), "not fused") for role in roles]
        lines = [line for line in found if line]
        if lines and self.fuses:
            lines[-1] += f"; {self.fuses}"
        return lines

    def _quantised(self) -> str:
        why = "; each is an edge between layers that compute in int8 and layers that do not"
        found = self._say(self.of("quantise"), "left")
        return found and found + (why if self.precision == "int8" else "")

    def _moved(self) -> str:
        found = self._say(self.of("layout"), "move data only")
        return found and f"{found}; kernels on both sides want another layout or shape"

    def _other_precision(self) -> list[str]:
        stated = STATED.get(self.precision, ())
        kernels = [layer for layer in self.of("kernel") if layer.precision]
        other = [layer for layer in kernels if layer.precision not in stated]
        if not other:
            return []
        found = ", ".join(sorted({layer.precision for layer in other}))
        said = self._say(other, f"compute in {found}")
        return [f"of {len(kernels)} kernels in an {self.precision} artifact {said}"]

    def _say(self, layers: Sequence[Layer], what: str) -> str:
        if not layers:
            return ""
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(layer.kind for layer in layers).most_common())
        part, whole = _total(layers), self.microseconds
        share = f" ({part / whole:.0%} of the time)" if part is not None and whole else ""
        return f"{kinds} {what}{share}"

    def rows(self) -> list[tuple[str, ...]]:
        """Return a table row for each layer; ``COLUMNS`` are the headings."""
        whole = self.microseconds
        rows: list[tuple[str, ...]] = []
        for number, layer in enumerate(self.layers, 1):
            time = layer.microseconds
            figures = ("", "") if time is None else (f"{time:.1f}", f"{time / whole:.1%}" if whole else "")
            rest = (layer.implementation, " + ".join(layer.parts) or layer.name)
            rows.append((str(number), layer.kind, layer.role, layer.precision, *figures, *rest))
        return rows

    def summary(self) -> str:
        """Return one line: the number of layers, of kernels among them, and the time."""
        whole = self.microseconds
        time = (
            "the runtime reports no times" if whole is None else f"{whole / 1e3:.3g} ms in the profiler, n={self.runs}"
        )
        kernels = len(self.of("kernel"))
        return f"{self.backend}, {self.precision}: {len(self.layers)} layers, {kernels} of them kernels; {time}"

    def to_json(self) -> JSON:
        """Return the fields and the findings as JSON values."""
        return {**encode(self), "microseconds": self.microseconds, "findings": list(self.findings)}

    @classmethod
    def from_json(cls, value: JSON) -> Inspection:
        """Read the output of ``to_json``; raise ValueError in one line for anything else."""
        stated = {key: item for key, item in value.items() if key not in ("microseconds", "findings")}
        return decode(cls, stated, "layers")


COLUMNS = ("", "kind", "role", "precision", "us", "share", "implementation", "layer")


def role_of(kind: str) -> Role:
    """Return the role of a kind of layer: a kernel, or a layer that better fusion would remove."""
    plain = kind.lower()
    for name, endings in _ROLES.items():
        if plain.endswith(endings) and not plain.endswith("matmul"):
            return name
    return "kernel"


def typical_time(times: Iterable[float]) -> float:
    """Return the mean without the slowest quarter.

    It varies less than the mean, and has a finer resolution than a median of whole microseconds.
    """
    ordered = sorted(times)
    kept = ordered[: max(1, len(ordered) * 3 // 4)]
    return sum(kept) / len(kept)


def _total(layers: Iterable[Layer]) -> float | None:
    times = [layer.microseconds for layer in layers]
    told = [time for time in times if time is not None]
    return sum(told) if told else None
