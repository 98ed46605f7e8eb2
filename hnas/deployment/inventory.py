"""The devices that hnas knows, and what runs and builds on this machine. Call `targets()` or `doctor()`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hnas import hw_profiles
from hnas.hw_profiles import Device


@dataclass(frozen=True)
class BackendReport:
    """State whether a backend runs artifacts and builds them on this machine.

    backend: the name of the backend.
    runs: whether its runtime is installed.
    builds: whether everything that compiles for it is installed.
    precisions: the precisions that it builds.
    versions: package -> version; empty if the runtime is not installed.
    install: the line that says what is missing and how to install it; None if nothing is missing.
    """

    backend: str
    runs: bool
    builds: bool
    precisions: tuple[str, ...]
    versions: Mapping[str, str]
    install: str | None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object whose keys are the fields."""
        return {**asdict(self), "precisions": list(self.precisions), "versions": dict(self.versions)}


def targets() -> tuple[Device, ...]:
    """Return the device profiles that `hnas.deploy` takes, by name.

    Example:
        [device.name for device in hnas.targets() if device.local]
    """
    return tuple(hw_profiles.load(name) for name in hw_profiles.names())


def doctor() -> tuple[BackendReport, ...]:
    """Return, for each backend, whether it runs and builds here, and how to install what is missing.

    Example:
        [report.install for report in hnas.doctor() if not report.runs]
    """
    from hnas.export import backends

    found = []
    for name in backends.names():
        backend = backends.load(name)
        runtime, building = backend.missing(), backends.cannot_build(name, backend.precisions)
        versions = {} if runtime else dict(backend.versions())
        lacks = building or runtime
        found.append(BackendReport(name, not runtime, not building, backend.precisions, versions, lacks))
    return tuple(found)
