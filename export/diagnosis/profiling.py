"""Profile the layers of an artifact in a separate process, because profiling changes the state of a runtime.

Call ``layers(artifact)``. The process runs ``python -m hnas.export.diagnosis.profiling``. Neither side needs torch.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnas.export import backends
from hnas.export.device import runtimes
from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import ExportError, Unavailable, one_line
from hnas.export.device.frames import Arrays, Frame, Header, dispatch, serve
from hnas.export.device.records import encode
from hnas.export.graph.samples import random_sample
from hnas.export.onnx.source import describe_origin
from hnas.export.proof.inspection import Inspection
from hnas.export.remote.process import ChildProcess
from hnas.export.remote.transports import local

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_RUNS = 30


def layers(
    artifact: Artifact | Path | str,
    inputs: Sequence[NDArray[Any]] | None = None,
    *,
    runs: int = _RUNS,
    threads: int | None = None,
    timeout: float = 120.0,
) -> Inspection:
    """Measure the time of each layer of an artifact on this machine, with the profiler of its runtime.

    artifact: an Artifact, its folder or a model file.
    inputs: the arrays of one call; default random arrays. A bare model file requires them, as it states no shapes.
    runs: number of calls.
    threads: number of threads of the runtime; default that of the artifact.
    timeout: time limit in seconds.

    Raises:
        ValueError: the backend has no inspector, ``runs`` is below 1, or inputs are missing or have wrong shapes.
        Unavailable: the runtime is not installed.
        ExportError: the runtime fails, or does not answer in time.

    Example: ``print(export.layers("out/int8").summary())``
    """
    opened = artifact if isinstance(artifact, Artifact) else Artifact.read(artifact)
    backends.inspector(opened.backend)
    if runs < 1:
        raise ValueError(f"runs must be 1 or more, got {runs}")
    if inputs is None and not opened.inputs:
        raise ValueError(f"{opened.source} does not state the shapes of its inputs; pass inputs=(array, ...)")
    values = random_sample(opened.inputs) if inputs is None else tuple(inputs)
    opened = replace(opened, threads=threads or opened.threads)
    name = f"inspector ({opened.backend}, {opened.precision}, {opened.source.name})"
    pools = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(opened.threads))
    with ChildProcess(
        name, "hnas.export.diagnosis.profiling", environment=pools, timeout=timeout, transport=local
    ) as process:
        request = {"do": "inspect", "path": local.place(opened.source), "threads": opened.threads, "runs": runs}
        reply, _ = process.ask(request, values)
    return Inspection.from_json(reply["inspection"])


class _Inspecting:
    """Answer the requests of the parent process."""

    def do_inspect(self, header: Header, arrays: Arrays) -> Frame:
        """Return the layers of the artifact at ``path``."""
        artifact = replace(Artifact.read(header["path"]), threads=header["threads"])
        inspector, runtime = backends.inspector(artifact.backend), runtimes.load(artifact.backend)
        missing = runtime.missing()
        if missing is not None:
            raise Unavailable(missing)
        try:
            found = inspector.layers(artifact, arrays, header["runs"])
        except (ExportError, ValueError):
            raise
        except Exception as error:  # a runtime may raise anything; the parent gets one line
            raise ExportError(f"{artifact.backend} does not report its layers: {one_line(error)}") from error
        return {
            "inspection": encode(
                Inspection(
                    backend=artifact.backend,
                    precision=artifact.precision,
                    threads=artifact.threads,
                    runs=header["runs"],
                    layers=tuple(found),
                    fuses=inspector.FUSES,
                    versions=runtime.versions(),
                    source=describe_origin(artifact.notes.get("source")),
                )
            )
        }, ()


if __name__ == "__main__":
    serve(dispatch(_Inspecting()))
