"""Name the cases that are compared, and keep their results in files, so that a stopped run continues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hnas.benchmarks.peers.tools import PEERS
from hnas.export.device.artifact import Artifact
from hnas.files import read_json, write_json

OURS = "ours"
BACKENDS = tuple(PEERS)
PRECISIONS = ("fp32", "int8")


@dataclass(frozen=True)
class Case:
    """One network on one backend in one precision."""

    net: str
    backend: str
    precision: str

    @property
    def title(self) -> str:
        """Return the case as text."""
        return f"{self.net}, {self.backend}, {self.precision}"


@dataclass(frozen=True)
class Folder:
    """The results of one run in ``path``: models in ``models``, times in ``times``."""

    path: Path

    def model(self, case: Case, maker: str) -> Path:
        """Return the folder of the artifact that ``maker`` makes for a case."""
        return self.path / "models" / case.net / f"{case.backend}-{maker}" / case.precision

    def made(self, case: Case, maker: str) -> dict[str, Any] | None:
        """Return the record of making that artifact: seconds, rss_mb and sqnr_db, or an error; None before a try."""
        return _read(self.model(case, maker).with_suffix(".json"))

    def write_made(self, case: Case, maker: str, record: dict[str, Any]) -> None:
        """Write the record of making an artifact."""
        _write(self.model(case, maker).with_suffix(".json"), record)

    def forget(self, case: Case, maker: str) -> None:
        """Delete the record, so that the artifact is made again."""
        self.model(case, maker).with_suffix(".json").unlink(missing_ok=True)

    def artifact(self, case: Case, maker: str) -> Artifact | None:
        """Return the artifact, or None where it could not be made."""
        record = self.made(case, maker)
        return None if record is None or "error" in record else Artifact.read(self.model(case, maker))

    def inputs(self, net: str) -> tuple[NDArray[Any], ...]:
        """Return the inputs of the call that is timed."""
        with np.load(self.path / "models" / net / "inputs.npz", allow_pickle=False) as read:
            return tuple(read[name] for name in read.files)

    def write_inputs(self, net: str, arrays: Sequence[NDArray[Any]]) -> None:
        """Write the inputs of the call that is timed, so that timing needs no network."""
        np.savez(self.path / "models" / net / "inputs.npz", *arrays)

    def times(self, case: Case) -> dict[str, Any] | None:
        """Return the record of a measured case, or None."""
        return _read(self._times(case))

    def write_times(self, case: Case, record: dict[str, Any]) -> None:
        """Write the record of a measured case."""
        _write(self._times(case), record)

    def _times(self, case: Case) -> Path:
        return self.path / "times" / f"{case.net}-{case.backend}-{case.precision}.json"

    def limits(self) -> dict[str, Any] | None:
        """Return the time and memory of compiling a net of five million parameters, or None if not measured yet."""
        return _read(self.path / "limits.json")

    def write_limits(self, record: dict[str, Any]) -> None:
        """Write the time and memory of compiling."""
        _write(self.path / "limits.json", record)


def cases(nets: Sequence[str], backends: Sequence[str], precisions: Sequence[str]) -> list[Case]:
    """Return every combination, network by network."""
    return [Case(net, backend, precision) for net in nets for backend in backends for precision in precisions]


def makers(backend: str) -> tuple[str, ...]:
    """Return the makers of models for a runtime: ours first, then the peers."""
    return (OURS, *PEERS[backend])


def _read(path: Path) -> dict[str, Any] | None:
    found: dict[str, Any] | None = read_json(path) if path.is_file() else None
    return found


def _write(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
