"""Compile by a backend and write the artifact: check the request, hash the files and write ``artifact.json``.

``make_artifact("onnxruntime", program, folder, precision="fp32", device=hw_profiles.load("onnxruntime-cpu"))``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hnas.export import backends
from hnas.export.device.artifact import Artifact, digest_files
from hnas.export.device.dynamic import NOTE
from hnas.export.graph.samples import require_samples

if TYPE_CHECKING:
    from hnas.export.graph.program import Program
    from hnas.export.graph.samples import Samples
    from hnas.export.onnx.source import OnnxSource
    from hnas.hw_profiles import Device


def make_artifact(
    name: str,
    program: Program | OnnxSource,
    folder: Path,
    *,
    precision: str,
    device: Device,
    threads: int = 1,
    calibration: Samples | None = None,
) -> Artifact:
    """Compile ``program`` into the empty ``folder`` with the backend ``name``, and write the artifact there.

    ``threads``: the number of threads that the runtime uses.
    ``calibration``: samples for int8, checked by `hnas.export.graph.samples.to_samples`.

    Raises:
        ValueError: the backend does not have the precision, or int8 has no samples.
        Exception: the error of the converter, of any type.
    """
    backend = backends.load(name)
    if precision not in backend.precisions:
        raise ValueError(f"{name} compiles to {', '.join(backend.precisions)}, got {precision!r}")
    if precision == "int8":
        require_samples(calibration)
    written = backend.compile(program, folder, precision=precision, device=device, calibration=calibration or ())
    inputs, outputs = program.signature
    artifact = Artifact(
        path=folder,
        backend=name,
        precision=precision,
        device=device.name,
        threads=threads,
        inputs=inputs,
        outputs=outputs,
        files=digest_files(folder, *written.files),
        versions=written.versions,
        notes=written.notes if program.dynamic is None else {NOTE: program.dynamic.to_json(), **written.notes},
    )
    artifact.write()
    return artifact
