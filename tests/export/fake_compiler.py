"""Run the real compiler's child with backends that fail. The name of the backend chooses how."""

import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from hnas.export import backends
from hnas.export.backends.reference import convert as reference
from hnas.export.compiling import conversion as compiling
from hnas.export.device.artifact import RECORD
from hnas.export.remote.transports import local

place, lost, where = local.place, local.lost, local.where


def start(module: str, environment: Any) -> "subprocess.Popen[bytes]":
    """Start this module instead of the one that the local transport starts."""
    assert module == "hnas.export.compiling.conversion"
    return local.start(__name__, environment)


def _compile(name: str, program: Any, path: Path, **options: Any) -> Any:
    match name:
        case "crash":
            os.write(2, b"about to go\n")
            os.kill(os.getpid(), signal.SIGSEGV)
        case "hang":
            signal.pause()
        case "memory":
            np.ones(2**30)
        case "frame":
            os.write(4, b"garbage that is longer than a prefix")  # 3 and 4 carry the frames
        case "raise":
            raise RuntimeError("boom\nand a page more")
        case "noise":
            os.write(1, b"progress: 100 %\n" * 10_000)
        case "lie":
            return replace(reference.compile(program, path, **options), files=("absent.bin",))
        case "process":
            (path / "process").write_text(str(os.getpid()))
        case "calibration":
            values = [value for sample in options["calibration"] for value in sample]
            (path / "sum").write_text(str([float(np.sum(value)) for value in values]))
    return reference.compile(program, path, **options)


def _load(name: str) -> Any:
    def convert(program: Any, path: Path, **options: Any) -> Any:
        return _compile(name, program, path, **options)

    return SimpleNamespace(missing=lambda: None, precisions=("fp32", "int8"), compile=convert)


class _Damaging(compiling.Compiling):
    """Damage the artifact after it was made."""

    def do_compile(self, header: Any, arrays: Any) -> Any:
        reply = super().do_compile(header, arrays)
        if header["backend"] == "nothing":
            Path(header["path"], RECORD).unlink()
        if header["backend"] == "cut":
            Path(header["path"], reference.WEIGHTS).write_bytes(b"")
        return reply


if __name__ == "__main__":
    backends.load = _load
    compiling.serve(compiling.dispatch(_Damaging()))
