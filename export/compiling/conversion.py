"""Conversion by a backend, and the compiler's child: one program after another, in a process that may die of it.

``python -m hnas.export.compiling.conversion`` serves a parent's `hnas.export.compiling.compiler.Compiler` over its
stdin and stdout.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnas.export import backends
from hnas.export.backends.artifacts import make_artifact
from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import ExportError, Unavailable, one_line
from hnas.export.device.frames import Arrays, Frame, Header, dispatch, serve
from hnas.export.device.records import JSON, decode
from hnas.export.device.serve_artifacts import limit_memory
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
    """The artifact of ``program`` that backend ``name`` writes into the empty ``folder``, in this process.

    Whatever the converter raises is one line that starts with what could not be compiled: Unavailable where something
    is not installed, else ExportError.
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
    except Exception as error:  # converters raise whatever they like
        missing = backend.missing() if isinstance(error, ImportError) else None
        if missing is not None:
            raise Unavailable(missing) from error
        raise ExportError(f"{what}: {one_line(error)}") from error


class Compiling:
    """What the child holds between requests: tensors of the program to come, and the last calibration."""

    def __init__(self) -> None:
        self._tensors: list[Any] = []
        self._samples: list[Arrays] = []

    def do_tensors(self, header: Header, arrays: Arrays) -> Frame:
        """Tensors of the next program, after those that came before; ``first``: there are none."""
        self._tensors = [*([] if header["first"] else self._tensors), *arrays]
        return {}, ()

    def do_sample(self, header: Header, arrays: Arrays) -> Frame:
        """One calibration sample, after those that came before; ``first``: there are none. They stay until then."""
        self._samples = [*([] if header["first"] else self._samples), arrays]
        return {}, ()

    def do_compile(self, header: Header, _: Arrays) -> Frame:
        """Convert the program of ``header`` into the folder ``path``, within ``memory_mb``, with so many ``cores``."""
        import torch

        if header["memory_mb"] is not None:
            limit_memory(header["memory_mb"])
        if torch.get_num_threads() != header["cores"]:  # sums in another order are other sums
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
    """The program, or the ONNX file: that lies on this machine, and only its record travels."""
    if isinstance(packed, dict) and "onnx" in packed:
        return decode(OnnxSource, packed["onnx"], "the ONNX file")
    from hnas.export.graph.wire import unpack

    return unpack(packed, tensors)


if __name__ == "__main__":
    import torch  # noqa: F401  # before the first request, while the parent does something else

    serve(dispatch(Compiling()))
