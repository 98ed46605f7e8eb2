"""What a runtime makes of an artifact: kernels that remain, what stands alone, in which precision, how long.

`hnas.export.diagnosis.profiling` fills it in from the runtime's own view; this is what the view is written down in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from hnas.export.device.records import JSON, decode, encode

Role: TypeAlias = Literal["kernel", "activation", "norm", "arithmetic", "layout", "quantise"]

STATED: Mapping[str, tuple[str, ...]] = {
    "fp32": ("f32",),
    "fp16": ("f16",),
    "bf16": ("bf16",),
    "int8": ("i8", "u8"),
    "w8": ("f32",),
}
# By the end of a kind's name in lower case, without what a runtime puts before it; anything else is a kernel.
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
    """One step of the runtime: ``parts`` are the layers of the file that are in it, where the runtime tells.

    ``precision`` is that of its arithmetic (f32, f16, bf16, i8, u8; empty where unknown), ``microseconds`` one call's
    (None where the runtime does not tell), ``implementation`` the runtime's name for the code that runs.
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
    """The layers of an artifact in the order they run; ``fuses`` says what the runtime can join to a kernel at best.

    ``source`` says of an artifact that was made from an ONNX file what that means; else it is empty.

    Times come from a profiler, which costs time itself: they compare layers with each other. A latency is `measure`'s.
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
        """All layers together; None where the runtime tells no times."""
        return _total(self.layers)

    def of(self, role: Role) -> tuple[Layer, ...]:
        """The layers of one role."""
        return tuple(layer for layer in self.layers if layer.role == role)

    @property
    def findings(self) -> tuple[str, ...]:
        """What did not fuse, what moves or converts data only, what computes in another precision than stated; where
        it was made from an ONNX file, that too.
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
        """A row a layer for a table: number, kind, role, precision, microseconds, share, implementation, name."""
        whole = self.microseconds
        rows: list[tuple[str, ...]] = []
        for number, layer in enumerate(self.layers, 1):
            time = layer.microseconds
            figures = ("", "") if time is None else (f"{time:.1f}", f"{time / whole:.1%}" if whole else "")
            rest = (layer.implementation, " + ".join(layer.parts) or layer.name)
            rows.append((str(number), layer.kind, layer.role, layer.precision, *figures, *rest))
        return rows

    def summary(self) -> str:
        """One line: how many layers, how many of them kernels, how long."""
        whole = self.microseconds
        time = "the runtime tells no times" if whole is None else f"{whole / 1e3:.3g} ms in the profiler, n={self.runs}"
        kernels = len(self.of("kernel"))
        return f"{self.backend}, {self.precision}: {len(self.layers)} layers, {kernels} of them kernels; {time}"

    def to_json(self) -> JSON:
        """All of it as plain JSON, the findings with it."""
        return {**encode(self), "microseconds": self.microseconds, "findings": list(self.findings)}

    @classmethod
    def from_json(cls, value: JSON) -> Inspection:
        """The inverse of ``to_json``; ValueError in one line otherwise."""
        stated = {key: item for key, item in value.items() if key not in ("microseconds", "findings")}
        return decode(cls, stated, "layers")


COLUMNS = ("", "kind", "role", "precision", "us", "share", "implementation", "layer")


def role(kind: str) -> Role:
    """What a layer of this kind is for: a kernel, or one of the things that better fusion would remove."""
    plain = kind.lower()
    for name, endings in _ROLES.items():
        if plain.endswith(endings) and not plain.endswith("matmul"):
            return name
    return "kernel"


def typical(times: Iterable[float]) -> float:
    """The mean without the slowest quarter: steadier than a mean, finer than a median of whole microseconds."""
    ordered = sorted(times)
    kept = ordered[: max(1, len(ordered) * 3 // 4)]
    return sum(kept) / len(kept)


def _total(layers: Iterable[Layer]) -> float | None:
    times = [layer.microseconds for layer in layers]
    told = [time for time in times if time is not None]
    return sum(told) if told else None
