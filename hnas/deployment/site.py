"""The device behind ``--host``, which verifies and measures artifacts. Connect with `visit(address, backend)`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from hnas.export.device.artifact import Artifact
from hnas.export.device.machine import Machine
from hnas.export.remote import transports
from hnas.export.remote.transports import Transport
from hnas.export.remote.worker import Worker, describe_machine

# Seconds until an artifact is open. On a small board, TensorRT builds an engine first.
_TIMEOUTS = {"tensorrt": 1800.0}


@dataclass(frozen=True)
class Site:
    """A device behind ``transport``.

    backend: the backend that runs on the device.
    machine: the description of the device.
    versions: the versions of the runtime on the device.
    """

    transport: Transport
    backend: str
    machine: Machine
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """Return the address as text."""
        return self.transport.where

    def open(self, artifact: Artifact) -> Worker:
        """Start a worker on the device, with the runtime that the artifact was built for."""
        start = partial(Worker, artifact, backend=artifact.backend, transport=self.transport)
        timeout = _TIMEOUTS.get(self.backend)
        return start() if timeout is None else start(timeout=timeout)


def visit(address: str, backend: str) -> Site:
    """Connect to the device at ``address``. Raise Unavailable where the device or its runtime is missing."""
    transport = transports.connect(address)
    return Site(transport, backend, *describe_machine(backend, transport))
