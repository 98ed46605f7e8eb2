"""Run workers on this machine behind another command, such as an emulator of another CPU."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from hnas.export.remote.portable import build_zip


class Emulated:
    """Start workers by a command.

    ``where``: the name of the emulated machine in errors.
    ``python``: the command that starts Python in the emulator, without the arguments of Python.
    ``folder``: the folder to which the program of `hnas.export.remote.portable` is written.
    ``environment``: variables of the workers' environment, besides PATH.
    """

    def __init__(self, where: str, python: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self.where, self._python, self._environment = where, tuple(python), dict(environment)
        self._program = folder / "device.pyz"
        self._program.write_bytes(build_zip())

    def start(self, module: str, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start ``python -m module`` behind the command, with pipes."""
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
        """Return ``path``: a user-mode emulator sees the same files."""
        return str(path.resolve())

    def lost(self, _code: int) -> bool:
        """Return False: there is no connection."""
        return False
