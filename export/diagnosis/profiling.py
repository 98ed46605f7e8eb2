"""The layers of an artifact as its runtime runs them, asked for in a process of its own: profiling changes a runtime.

``python -m hnas.export.diagnosis.profiling`` is that process's end; the parent's is `layers`. Neither needs torch.
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
from hnas.export.onnx.source import made_from
from hnas.export.proof.inspection import Inspection
from hnas.export.remote.process import Process
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
    """The layers of ``artifact`` in its runtime on this machine, timed over ``runs`` calls by its own profiler.

    ``inputs`` are those of one call; by default random ones, which need the shapes that a bare model file does not
    state. ValueError for wrong use, Unavailable where the runtime is missing, ExportError where it fails.
    """
    opened = artifact if isinstance(artifact, Artifact) else Artifact.read(artifact)
    backends.inspector(opened.backend)
    if runs < 1:
        raise ValueError(f"runs must be 1 or more, got {runs}")
    if inputs is None and not opened.inputs:
        raise ValueError(f"{opened.source} does not state what it takes; pass inputs=(array, ...)")
    values = random_sample(opened.inputs) if inputs is None else tuple(inputs)
    opened = replace(opened, threads=threads or opened.threads)
    name = f"inspector ({opened.backend}, {opened.precision}, {opened.source.name})"
    pools = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(opened.threads))
    with Process(
        name, "hnas.export.diagnosis.profiling", environment=pools, timeout=timeout, transport=local
    ) as process:
        request = {"do": "inspect", "path": local.place(opened.source), "threads": opened.threads, "runs": runs}
        reply, _ = process.ask(request, values)
    return Inspection.from_json(reply["inspection"])


class _Inspecting:
    """What the process answers."""

    def do_inspect(self, header: Header, arrays: Arrays) -> Frame:
        """The layers of the artifact at ``path``."""
        artifact = replace(Artifact.read(header["path"]), threads=header["threads"])
        inspector, runtime = backends.inspector(artifact.backend), runtimes.load(artifact.backend)
        missing = runtime.missing()
        if missing is not None:
            raise Unavailable(missing)
        try:
            found = inspector.layers(artifact, arrays, header["runs"])
        except (ExportError, ValueError):
            raise
        except Exception as error:  # whatever a runtime raises is one line for the parent
            raise ExportError(f"{artifact.backend} does not tell its layers: {one_line(error)}") from error
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
                    source=made_from(artifact.notes.get("source")),
                )
            )
        }, ()


if __name__ == "__main__":
    serve(dispatch(_Inspecting()))
