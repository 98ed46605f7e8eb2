"""Convert a program by a backend, in this process or as the child of `hnas.export.compiling.compiler.Compiler`.

``python -m hnas.export.compiling.conversion`` answers requests on stdin, one program after another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnas.export import backends
from hnas.export.backends.artifacts import make_artifact
from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import ExportError, Unavailable, one_line
from hnas.export.device.frames import Arrays, Frame, Header, dispatch, serve
from hnas.export.device.opening import limit_memory
from hnas.export.device.records import JSON, decode
from hnas.export.onnx.source import OnnxSource
from hnas.hw_profiles import Device

if TYPE_CHECKING:
    from hnas.export.backends import Backend
    from hnas.export.graph.program import Program
    from hnas.export.graph.samples import Samples


def convert(
    name: str,
    program: Program | OnnxSource,
    folder: Path,
    *,
    precision: str,
    device: Device,
    threads: int,
    calibration: Samples | None,
    called: str = "the program",
) -> Artifact:
    """Compile ``program`` into the empty ``folder`` with the backend ``name``, in this process.

    The parameters are those of `hnas.export.backends.artifacts.make_artifact`; ``called`` names the program in errors.

    Raises:
        Unavailable: a package of the backend is not installed.
        ExportError: any other error of the converter, as one line that names the program.
    """
    backend = backends.load(name)
    with _named(f"{name} cannot compile {called} to {precision}", backend):
        return make_artifact(
            name, program, folder, precision=precision, device=device, threads=threads, calibration=calibration
        )


@contextmanager
def _named(what: str, backend: Backend) -> Iterator[None]:
    try:
        yield
    except ExportError:
        raise
    except Exception as error:  # a converter may raise anything
        missing = backend.missing() if isinstance(error, ImportError) else None
        if missing is not None:
            raise Unavailable(missing) from error
        raise ExportError(f"{what}: {one_line(error)}") from error


EAGER = "HNAS_EAGER"  # the variable that names the packages to import at the start of the process


class Compiling:
    """Hold the tensors of the next program and the last calibration samples, between requests."""

    def __init__(self) -> None:
        self._tensors: list[Any] = []
        self._samples: list[Arrays] = []

    def do_tensors(self, header: Header, arrays: Arrays) -> Frame:
        """Append tensors of the next program. ``first`` discards the earlier ones."""
        self._tensors = [*([] if header["first"] else self._tensors), *arrays]
        return {}, ()

    def do_sample(self, header: Header, arrays: Arrays) -> Frame:
        """Append a calibration sample. ``first`` discards the earlier ones. Later conversions can reuse them."""
        self._samples = [*([] if header["first"] else self._samples), arrays]
        return {}, ()

    def do_compile(self, header: Header, _: Arrays) -> Frame:
        """Convert the program of ``header`` into the folder ``path``, within ``memory_mb``, on ``cores`` threads.

        ``cores`` is None for an ONNX file, which needs no torch.
        """
        if header["memory_mb"] is not None:
            limit_memory(header["memory_mb"])
        if header["cores"] is not None:
            import torch

            if torch.get_num_threads() != header["cores"]:  # another number changes the order of sums, and so the bytes
                torch.set_num_threads(header["cores"])
        tensors, self._tensors = self._tensors, []
        convert(
            header["backend"],
            _received(header["program"], tensors),
            Path(header["path"]),
            precision=header["precision"],
            device=decode(Device, header["device"], "the device"),
            threads=header["threads"],
            calibration=self._samples if header["calibrated"] else None,
            called=header["called"],
        )
        return {}, ()


def _received(packed: JSON, tensors: list[Any]) -> Program | OnnxSource:
    """Return the program, or the record of an ONNX file on this machine."""
    if isinstance(packed, dict) and "onnx" in packed:
        return decode(OnnxSource, packed["onnx"], "the ONNX file")
    from hnas.export.graph.wire import unpack

    return unpack(packed, tensors)


if __name__ == "__main__":
    for name in os.environ.get(EAGER, "").split():
        import_module(name)  # before the first request, while the parent is busy
    serve(dispatch(Compiling()))
