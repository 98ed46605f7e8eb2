"""Where a worker runs: one file a place. A transport starts the worker there and brings artifacts to it."""

import pkgutil
import subprocess
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast


class Transport(Protocol):
    """A module, or an object bound to one host."""

    def start(self, module: str, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        """``python -m module`` there, with ``environment`` added to its own, as a process with three pipes."""

    def place(self, path: Path) -> str:
        """Bring the file or folder ``path`` there; how the worker calls it."""


def names() -> tuple[str, ...]:
    """The transports, by file name."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def load(name: str) -> Transport:
    """The transport ``name``, imported only now; ValueError for an unknown one."""
    if name not in names():
        raise ValueError(f"no transport {name!r}; known: {', '.join(names())}")
    return cast("Transport", import_module(f"{__name__}.{name}"))
