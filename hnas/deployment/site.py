"""The device behind ``--host``, which verifies and measures artifacts. Connect with `visit(address, device)`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hnas.export.device.artifact import Artifact
from hnas.export.device.engine_types import parse_version
from hnas.export.device.errors import Unavailable
from hnas.export.device.machine import Machine
from hnas.export.graph.samples import tell
from hnas.export.remote import transports
from hnas.export.remote.transports import Transport
from hnas.export.remote.worker import Worker, describe_machine
from hnas.hw_profiles import Device


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
        return Worker(artifact, backend=artifact.backend, transport=self.transport)


def visit(address: str, device: Device) -> Site:
    """Connect to the device at ``address``. Tell the user if its TensorRT is not one of the profile's.

    Raises:
        Unavailable: the device or its runtime is missing, or its TensorRT is older than those of the profile.
    """
    transport = transports.connect(address)
    site = Site(transport, device.backend, *describe_machine(device.backend, transport))
    if remark := _compare_versions(site, device):
        tell(remark)
    return site


def _compare_versions(site: Site, device: Device) -> str:
    """Return a remark on a TensorRT that is newer than those of the profile, else ""."""
    there, stated = site.versions.get("tensorrt"), device.toolchain.get("TensorRT", "")
    known = [parse_version(each) for each in stated.split("-")] if stated else []
    if there is None or not known or min(known) <= parse_version(there) <= max(known):
        return ""
    found = f"{site.where} has TensorRT {there}, the profile {device.name} is for {stated}"
    if parse_version(there) < min(known):
        raise Unavailable(f"{found}; install a newer JetPack")
    return f"{found}: the engine is built all the same, but the checks before it are those of {stated}"
