"""Find transports: one file per kind of machine. A transport starts a worker there and sends artifacts to it.

``transports.connect("ssh://user@device")``.
"""

import pkgutil
import subprocess
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast


class Transport(Protocol):
    """Describe a module of this folder, or an object for one host.

    ``where``: the name of the machine in errors; empty for this machine.
    """

    where: str

    def start(self, module: str, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        """Start ``python -m module`` there, with ``environment`` added, and return the process with its three pipes."""

    def place(self, path: Path) -> str:
        """Send the artifact at ``path`` there, and return its path for the worker."""

    def lost(self, code: int) -> bool:
        """Return whether the exit code of a process of ``start`` means that the connection broke."""


def names() -> tuple[str, ...]:
    """Return the names of the transports, which are file names."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def load(name: str) -> Transport:
    """Return the transport ``name``, imported only now. Raise ValueError for an unknown one."""
    return cast("Transport", _module(name))


def connect(address: str) -> Transport:
    """Connect to a device, such as ``ssh://user@device:port``, and return the transport.

    Raises:
        ValueError: ``address`` is not an address, or its transport is unknown.
        Unavailable: the device cannot be reached, or lacks software that a worker needs.
    """
    scheme, mark, _ = address.partition("://")
    if not mark:
        raise ValueError(f"host is {address!r}, expected an address such as ssh://user@device")
    module = _module(scheme)
    if not hasattr(module, "connect"):
        raise ValueError(f"transport {scheme!r} has no hosts; leave --host out for this machine")
    return cast("Transport", module.connect(address))


def _module(name: str) -> Any:
    if name not in names():
        raise ValueError(f"no transport {name!r}; known: {', '.join(names())}")
    return import_module(f"{__name__}.{name}")
