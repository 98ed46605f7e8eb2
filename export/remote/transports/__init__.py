"""Where a worker runs: one file a place. A transport starts the worker there and brings artifacts to it."""

import pkgutil
import subprocess
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast


class Transport(Protocol):
    """A module, or an object bound to one host; ``where`` is its name for people, empty for this machine."""

    where: str

    def start(self, module: str, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        """``python -m module`` there, with ``environment`` added to its own, as a process with three pipes."""

    def place(self, path: Path) -> str:
        """Bring the artifact at ``path`` there; how the worker calls it."""

    def lost(self, code: int) -> bool:
        """Whether a process of ``start`` that ended with ``code`` ended because the connection did."""


def names() -> tuple[str, ...]:
    """The transports, by file name."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def load(name: str) -> Transport:
    """The transport ``name``, imported only now; ValueError for an unknown one."""
    return cast("Transport", _module(name))


def connect(address: str) -> Transport:
    """The transport to a device, such as ``ssh://user@device:port``; ValueError or Unavailable, in one line."""
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
