"""Find an interpreter of Python 3.8 or 3.9, the oldest that a device may have."""

import shutil
import subprocess
from functools import cache
from pathlib import Path


@cache
def old_python() -> str | None:
    """Return the path of an old interpreter on PATH or of pyenv, or None."""
    known = [
        str(path) for version in ("3.8", "3.9") for path in Path.home().glob(f".pyenv/versions/{version}.*/bin/python3")
    ]
    for name in [shutil.which("python3.8"), shutil.which("python3.9"), *known]:
        if name and subprocess.run([name, "-c", ""], capture_output=True, check=False).returncode == 0:
            return name  # a shim of pyenv fails where it has no such version
    return None
