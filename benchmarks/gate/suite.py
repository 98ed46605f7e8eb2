"""Read a suite of claims: a TOML file in which every key is known, and every path exists.

``read_suite(Path("speed.toml")).claim[0].at_least``. docs/ci.md describes the keys for users.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from hnas.benchmarks.gate.checking import parse_seconds

Measured: TypeAlias = Literal[
    "p50", "p90", "p99", "throughput", "cold_start", "first_inference", "peak_memory", "end_to_end"
]

_LARGEST = 2**20  # bytes of a suite
_SECONDS = 60.0  # of each claim about speed, where the suite states no time


@dataclass(frozen=True)
class SuiteClaim:
    """One claim of a suite. Without a bound nothing is claimed, which is an error.

    artifact, baseline: a bundle, an artifact folder or a model file. An empty baseline is that of the bundle.
    measure: the figure of which the artifact is better than the baseline by a factor.
    at_least: the factor to reach.
    same_within: the most that the two may differ, in per cent, in both directions.
    max_points_less: the most points of top-1 that the artifact may lose against the baseline.
    data: folder of the images; empty: those that the package ships.
    input_shapes: shapes of float32 inputs, such as "1x3x224x224"; empty: those that the artifacts state.
    target, precision: what the artifact states.
    max_size: bytes of its files, such as "300KB".
    max_macs: multiply-accumulates of one call.
    precisions: all precisions in which its kernels compute, such as "int8".
    max_kernels, max_qdq, max_reformats: the most layers of these roles, as the runtime executes them.
    max_partitions, max_undelegated: the most parts that XNNPACK runs in LiteRT, and layers outside of them.

    Raises:
        ValueError: no bound is given, or a bound is out of range or contradicts another.
    """

    name: str
    artifact: str
    baseline: str = ""
    measure: Measured = "p50"
    at_least: float | None = None
    same_within: float | None = None
    max_points_less: float | None = None
    data: str = ""
    input_shapes: tuple[str, ...] = ()
    target: str = ""
    precision: str = ""
    max_size: str = ""
    max_macs: float | None = None
    precisions: tuple[str, ...] = ()
    max_kernels: int | None = None
    max_qdq: int | None = None
    max_reformats: int | None = None
    max_partitions: int | None = None
    max_undelegated: int | None = None

    def __post_init__(self) -> None:
        from hnas.units import parse_shape, parse_size_bytes

        for fault in (*self._empty(), *self._faults()):
            raise ValueError(fault)
        if self.max_size:
            parse_size_bytes(self.max_size)
        for text in self.input_shapes:
            parse_shape(text)

    def _empty(self) -> Iterator[str]:
        """Yield which text is missing."""
        if not self.name.strip() or not self.name.isprintable() or not self.artifact:
            yield "name and artifact need a text in one line"

    def _faults(self) -> Iterator[str]:
        """Yield what is wrong with the bounds."""
        stated = (self.target, self.precision, self.max_size, self.precisions)
        given = {name: getattr(self, name) for name in (*_POSITIVE, "max_points_less", *_COUNTS)}
        numbers = {name: value for name, value in given.items() if value is not None}
        if not numbers and not any(stated):
            yield f"{self.name!r} claims nothing; give a bound such as at_least = 1.8 or max_size = '300KB'"
        for name, value in numbers.items():
            if value < 0 or (value == 0 and name in _POSITIVE):
                yield f"{name} is {value}, expected a number above 0"
        if self.at_least and self.same_within and not self.at_least <= 1 + self.same_within / 100:
            yield f"at_least = {self.at_least} and same_within = {self.same_within} cannot both hold"

    @property
    def timed(self) -> bool:
        """Return whether the claim is about a figure that is measured."""
        return self.at_least is not None or self.same_within is not None

    @property
    def inspected(self) -> bool:
        """Return whether the claim is about the layers that the runtime executes."""
        return bool(self.precisions) or any(getattr(self, name) is not None for name in _COUNTS)

    @property
    def run(self) -> bool:
        """Return whether the claim needs a call of the artifact with seeded inputs."""
        return self.timed or self.inspected or self.max_macs is not None


_POSITIVE = ("at_least", "same_within", "max_macs")
DELEGATED = ("max_partitions", "max_undelegated")
_COUNTS = ("max_kernels", "max_qdq", "max_reformats", *DELEGATED)


@dataclass(frozen=True)
class Suite:
    """A suite: its claims, and how they are measured.

    time: limit of the whole run, such as "5min"; empty: 60 s for each claim about a measured figure.
    processes: fresh processes of each artifact in one look.
    seed: of inputs, order and bootstrap.
    width: per cent by which the ends of an interval may differ; a wider one is measured again. None: any width.
    """

    claim: tuple[SuiteClaim, ...]
    time: str = ""
    processes: int = 5
    seed: int = 0
    width: float | None = None

    def __post_init__(self) -> None:
        names = [claim.name for claim in self.claim]
        twice = next((name for name in names if names.count(name) > 1), None)
        if not names:
            raise ValueError("claim is empty; expected one table [[claim]] or more")
        if twice is not None:
            raise ValueError(f"claim {twice!r} is there twice; a name is that of a history")
        if self.processes < 1:
            raise ValueError(f"processes is {self.processes}, expected 1 or more")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}, expected 0 or more")
        if self.width is not None and self.width <= 0:
            raise ValueError(f"width is {self.width}, expected a number of per cent above 0")
        if self.time:
            parse_seconds(self.time, "time")

    @property
    def seconds(self) -> float:
        """Return the time limit in seconds."""
        return parse_seconds(self.time, "time") if self.time else _SECONDS * max(1, sum(c.timed for c in self.claim))


def read_suite(file: Path) -> Suite:
    """Return the suite in ``file``. Its paths are relative to the folder of the file.

    Raises:
        ValueError: the file is missing or no TOML; a key is unknown, missing or of the wrong type; a path does not
        exist. The message is one line.
    """
    from hnas.export.device.disk import read_plain
    from hnas.export.device.records import decode

    try:
        table = tomllib.loads(read_plain(file, _LARGEST).decode())
    except OSError as error:
        raise ValueError(f"suite {file} cannot be read: {error.strerror or error}") from None
    except RecursionError:
        raise ValueError(f"suite {file} is no TOML: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"suite {file} is no TOML: {error}") from None
    suite = decode(Suite, table, str(file))
    claims = tuple(_placed(claim, file) for claim in suite.claim)
    for claim, given in zip(claims, table["claim"], strict=True):
        for key, needed in _idle(claim, given):
            raise ValueError(f"{file}: claim {claim.name!r}: {key} has no effect without {needed}")
    return replace(suite, claim=claims)


def _idle(claim: SuiteClaim, given: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield each key that is given without effect, and the bounds that it needs."""
    timed, points = "at_least or same_within", "max_points_less"
    counted = claim.max_points_less is not None
    uses = {
        "measure": (claim.timed, timed),
        "baseline": (claim.timed or counted, f"{timed} or {points}"),
        "data": (counted, points),
        "input_shapes": (claim.run, f"{timed} or a bound on macs, precisions or layers"),
    }
    return ((key, needed) for key, (used, needed) in uses.items() if key in given and not used)


def _placed(claim: SuiteClaim, file: Path) -> SuiteClaim:
    """Return the claim with paths from the folder of ``file``. Raise ValueError for one that does not exist."""
    found: dict[str, Any] = {}
    for key in ("artifact", "baseline", "data"):
        if value := getattr(claim, key):
            path = file.parent / value
            if "\0" in value or not path.exists():
                raise ValueError(f"{file}: claim {claim.name!r}: {key} = {value!r} is not there ({path})")
            found[key] = str(path)
    return replace(claim, **found)
