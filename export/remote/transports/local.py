"""Run workers on this machine, in new processes of the same Python."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

where = ""
_ROOT = str(Path(__file__).absolute().parents[4])  # where hnas was imported from


def start(module: str, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """Start ``python -m module`` with pipes, in its own session: Ctrl-C reaches only the parent, which ends it."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module],  # -P: modules in the user's folder must not hide others
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        env={**own_environment(), **environment},
        start_new_session=True,
    )


def own_environment() -> "dict[str, str]":
    """Return an environment in which another Python, also with -P, imports the same hnas."""
    search = os.pathsep.join(filter(None, (_ROOT, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": search}


def place(path: Path) -> str:
    """Return ``path``: the worker sees the same files."""
    return str(path.resolve())


def lost(_code: int) -> bool:
    """Return False: there is no connection."""
    return False
