"""Profile the layers of an artifact in a process of its own, because profiling changes a runtime.

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
    """Time the layers of an artifact on this machine with the profiler of its runtime.

    artifact: an Artifact, its folder or a model file.
    inputs: the arrays of one call; default random ones. A bare model file that states no shapes requires them.
    runs: number of calls.
    threads: of the runtime; default the artifact's.
    timeout: seconds without an answer.

    Raises:
        ValueError: wrong use.
        Unavailable: the runtime is missing.
        ExportError: the runtime fails.

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
    """The requests that the process answers."""

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
