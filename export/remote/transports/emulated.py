"""A worker behind other words on this machine, such as an emulator of another one, with the program that travels."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from hnas.export.remote.portable import program


class Emulated:
    """``python`` is the command up to the interpreter's own arguments; ``folder`` takes the program, if it lacks it."""

    def __init__(self, where: str, python: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self.where, self._python, self._environment = where, tuple(python), dict(environment)
        self._program = folder / "device.pyz"
        self._program.write_bytes(program())

    def start(self, module: str, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """``python -m module`` there, with pipes."""
        return subprocess.Popen(
            [*self._python, str(self._program), module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env={"PATH": os.environ.get("PATH", ""), **self._environment, **environment},
            start_new_session=True,
        )

    def place(self, path: Path) -> str:
        """The path itself: an emulator of user mode sees the same files."""
        return str(path.resolve())

    def lost(self, _code: int) -> bool:
        """Never: there is no connection."""
        return False
