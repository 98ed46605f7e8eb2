"""Define the records of a manifest. These records alone define the schema of ``manifest.json``.

Every figure is stored with its conditions: kind, unit, percentile, batch, threads, n, interval.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, TypeAlias

from hnas.export.device.artifact import check_files, check_name
from hnas.export.device.machine import Machine
from hnas.export.device.records import JSON
from hnas.export.proof.load import Load
from hnas.export.proof.slowdown import Slowdown
from hnas.export.proof.verification import Check

_LARGEST_FIGURE = 1e12  # of a latency in ms or a speedup; beyond it sums and charts overflow
_MOST = 2**63  # of a count
_Kind: TypeAlias = Literal["measured", "predicted"]


@dataclass(frozen=True)
class Input:
    """Describe the input of the network.

    ``layout``: the meaning of the axes, such as NCHW.
    ``preprocessing``: the steps from an image to the input; None if the user has to prepare the input.
    """

    shape: tuple[int, ...]
    dtype: str
    layout: str
    preprocessing: Mapping[str, JSON] | None = None


@dataclass(frozen=True)
class Accuracy:
    """Hold the share of ``n`` images of ``split`` that are classified correctly, 0 to 1.

    ``subnet_fp32``: the share for the network in fp32.
    ``artifact``: the share for the artifact; ``interval`` is its 95 % interval.
    ``baseline``: the share for the baseline, if there is one.
    """

    metric: str
    n: int
    split: str
    subnet_fp32: float
    artifact: float
    interval: tuple[float, float]
    baseline: float | None = None

    def __post_init__(self) -> None:
        _at_least("n", self.n, 1)
        for name in ("subnet_fp32", "artifact", "baseline"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}, expected 0 to 1")
        _ordered("artifact", self.interval[0], self.artifact, self.interval[1])


@dataclass(frozen=True)
class Prediction:
    """Hold a latency in ms that is predicted from the device's profile, and its band from ``low`` to ``high``.

    ``basis``: what the band rests on: published rows, or an assumption.
    ``power``: the power mode of the device.
    """

    value: float
    low: float
    high: float
    kind: Literal["predicted"] = "predicted"
    basis: str = ""
    power: str = ""

    def __post_init__(self) -> None:
        _ordered("value", self.low, self.value, self.high)


@dataclass(frozen=True)
class Latency:
    """Hold the latency of one call and its conditions. ``n`` is the number of timed calls."""

    kind: _Kind
    value: float
    low: float
    high: float
    batch: int
    threads: int
    n: int
    unit: Literal["ms"] = "ms"
    percentile: int = 50
    confidence: float | None = 0.95  # None for a prediction, which has a band instead of an interval
    p90: float | None = None
    p99: float | None = None
    predicted: Prediction | None = None

    def __post_init__(self) -> None:
        _ordered("value", self.low, self.value, self.high)
        _at_least("batch", self.batch, 1)
        _at_least("threads", self.threads, 1)
        _at_least("n", self.n, 1 if self.kind == "measured" else 0)


@dataclass(frozen=True)
class Speedup:
    """Hold the factor by which the artifact is faster than ``against``, the name of the baseline."""

    value: float
    low: float
    high: float
    against: str
    kind: _Kind
    processes: int = 1
    confidence: float | None = 0.95

    def __post_init__(self) -> None:
        _ordered("value", self.low, self.value, self.high)
        if self.low <= 0:
            raise ValueError(f"low is {self.low:g}, expected more than 0")


@dataclass(frozen=True)
class Data:
    """Name the data set of the figures, with the sha256 of each split that was used."""

    name: str
    digests: Mapping[str, str]


@dataclass(frozen=True)
class SpaceRecord:
    """Name the search space of the architecture.

    ``arguments``: the arguments of the space.
    ``supernet``: the sha256 of the supernet's weights; empty if unknown.
    """

    name: str
    arguments: Mapping[str, JSON] = field(default_factory=dict)
    supernet: str = ""


@dataclass(frozen=True)
class Mixed:
    """Record that int8 with blocks in float was tried as an additional candidate.

    ``why``: why it was tried.
    ``outcome``: the result.
    ``blocks_in_float``: the names of the blocks in float.
    ``sensitivity_db``: the signal-to-noise ratio of the outputs with only one block in int8, by block.
    ``trials``: the number of assignments that were compiled.

    The last three are empty if no assignment was accepted.
    """

    why: str
    outcome: str
    blocks_in_float: tuple[str, ...] = ()
    sensitivity_db: Mapping[str, float] = field(default_factory=dict)
    trials: int = 0

    def line(self) -> str:
        """Return the record in one sentence."""
        found, blocks = ", ".join(self.blocks_in_float), len(self.sensitivity_db)
        share = f"{len(self.blocks_in_float)} of {blocks} blocks in float ({found})"
        said = f" {share}, after {self.trials} trials;" if found else ""
        return f"mixed precision was tried because {self.why}:{said} {self.outcome}"


@dataclass(frozen=True)
class Manifest:
    """Describe a bundle: its network, how it was made, and its measured or predicted figures.

    ``arch``, ``space``: None for a network that no search found.
    ``input``: None for a network with no or several inputs.
    ``load``: the load of the machine while the figures were measured; None: not known, or nothing was measured.
    ``slowdown``: why int8 is not faster than the chosen precision; None if it is faster or was not compared.
    ``mixed``: the record of int8 with blocks in float; None if it was not tried.
    ``source``: the note "source" of an artifact that was made from an ONNX file.
    ``base_model``: the model on the Hugging Face Hub that training started from, as OWNER/NAME; empty: none.
    ``grade``: the grade of the verification: "as float", "close" or "degraded"; empty in older bundles. `write_bundle`
    fills in this field and the next four.
    ``size_bytes``: the size of the artifact's files.
    ``baseline``: the folder of the baseline, if the bundle has it.
    ``files``, ``sizes``: the sha256 and the bytes of each file. Older bundles do not state the bytes.

    Raises:
        ValueError: a field is out of range, or the network did not pass its verification.
    """

    name: str
    created: str  # ISO 8601 with a time zone
    task: str
    target: str
    backend: str
    precision: str
    arch: Mapping[str, JSON] | None
    space: SpaceRecord | None
    labels: tuple[str, ...]
    input: Input | None
    accuracy: Accuracy | None
    verification: Check
    latency: Latency
    speedup: Speedup | None
    machine: Machine
    versions: Mapping[str, str]
    seeds: Mapping[str, int]
    data: Data | None
    reproduce: str
    build: Mapping[str, JSON] | None = None
    load: Load | None = None
    slowdown: Slowdown | None = None
    mixed: Mixed | None = None
    source: Mapping[str, JSON] | None = None
    licence: str = ""
    base_model: str = ""
    artifact: str = "artifact"
    grade: str = ""
    baseline: str | None = None
    size_bytes: int = 0
    files: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name or not self.name.isprintable():
            raise ValueError(f"name is {self.name!r}, expected printable text")
        try:
            zoned = datetime.fromisoformat(self.created).tzinfo is not None
        except ValueError:
            zoned = False
        if not zoned:
            raise ValueError(f"created is {self.created[:40]!r}, expected an ISO 8601 time with its zone")
        if not self.verification.passed:
            raise ValueError(f"verification did not pass: {self.verification.line()}")
        if self.grade not in ("", self.verification.grade):
            raise ValueError(
                f"grade is {self.grade[:40]!r}, the figures of the verification are {self.verification.grade!r}"
            )
        if self.base_model and not re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", self.base_model, re.ASCII):
            raise ValueError(f"base_model is {self.base_model[:80]!r}, expected OWNER/NAME")
        for folder in filter(None, (self.artifact, self.baseline)):
            check_name(folder)
        check_files(self.files, self.sizes)
        _at_least("size_bytes", self.size_bytes, 0)


def _ordered(name: str, low: float, value: float, high: float) -> None:
    if not (0 <= low <= value <= high <= _LARGEST_FIGURE and (low == 0 or low >= 1 / _LARGEST_FIGURE)):
        said = f"{name} is {value:g} outside of its interval {low:g} to {high:g}"
        raise ValueError(f"{said}, or one is over {_LARGEST_FIGURE:g} or under its inverse")


def _at_least(name: str, value: int, least: int) -> None:
    if not least <= value < _MOST:
        raise ValueError(f"{name} is {str(value)[:40]}, expected {least} or more, and less than {_MOST}")
