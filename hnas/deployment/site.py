"""Where a deployment verifies and measures: this machine, or a device that answers at an address."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hnas.export.device.artifact import Artifact
from hnas.export.device.machine import Machine
from hnas.export.remote import transports
from hnas.export.remote.transports import Transport
from hnas.export.remote.worker import Worker, describe_machine

PATIENCE = {"tensorrt": 1800.0}  # seconds until an artifact is open, where opening may build an engine on a small board


@dataclass(frozen=True)
class Site:
    """A device behind ``transport``: what it is, and its versions of ``backend``."""

    transport: Transport
    backend: str
    machine: Machine
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """Its address, for people."""
        return self.transport.where

    def open(self, artifact: Artifact) -> Worker:
        """A worker there, on the runtime that the artifact was built for."""
        options: dict[str, Any] = {"timeout": PATIENCE[self.backend]} if self.backend in PATIENCE else {}
        return Worker(artifact, backend=artifact.backend, transport=self.transport, **options)


def visit(address: str, backend: str) -> Site:
    """The device at ``address``; Unavailable in one line where it or its runtime is missing."""
    transport = transports.connect(address)
    return Site(transport, backend, *describe_machine(backend, transport))
