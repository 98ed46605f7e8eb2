"""ONNX Runtime on the CPU: model.onnx, in fp32 or in explicit int8."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnas.export.device.artifact import Artifact, digest_files
from hnas.export.device.errors import Unavailable
from hnas.export.device.records import JSON
from hnas.export.device.runtimes.onnxruntime import load, missing, versions
from hnas.export.graph.samples import samples
from hnas.export.onnx.quantiser import QDQ
from hnas.export.onnx.source import OnnxSource, signature

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hnas.export.graph.program import Program
    from hnas.hw_profiles import Device

__all__ = ("compile", "load", "missing", "no_onnx", "precisions", "requires", "versions")

precisions: tuple[str, ...] = ("fp32", "int8")
requires: tuple[str, ...] = ("onnxruntime",)
no_onnx = ""

MODEL = "model.onnx"
# u8 activations, or convolutions are not fused (two to three times slower). The cheap operators between convolutions
# are on the list because a float one costs a dequantise and a quantise; LayerNorm, Softmax and GELU gain nothing.
POLICY = QDQ(
    operators=(
        "Conv",
        "Gemm",
        "MatMul",
        "Add",
        "Relu",
        "Clip",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "Concat",
    ),
    activations="u8",
    symmetric=False,
    bias=True,
)


def compile(
    program: Program | OnnxSource,
    path: Path,
    *,
    precision: str,
    device: Device,
    threads: int,
    calibration: Sequence[tuple[NDArray[Any], ...]] | None,
) -> Artifact:
    """Write model.onnx (opset 20, or that of a foreign file); int8 takes ``calibration``."""
    if precision not in precisions:
        raise ValueError(f"onnxruntime runs {', '.join(precisions)} on a CPU, got {precision!r}")
    if not (find_spec("onnx") and find_spec("onnxscript")):
        raise Unavailable("onnx and onnxscript are not installed; pip install 'hnas[onnxruntime-convert]'")
    from hnas.export.onnx import file as onnx_file

    inputs, outputs = signature(program)
    notes: dict[str, JSON] = {}
    if precision == "int8":
        data = samples(calibration, inputs)
        policy = POLICY.on(device.quantisation.get("onnxruntime"))
        notes["quantisation"] = {**policy.to_json(), "samples": len(data)}
        onnx_file.put_int8(program, path / MODEL, inputs, outputs, data, policy)
    else:
        onnx_file.put(program, path / MODEL, inputs, outputs)
    artifact = Artifact(
        path=path,
        backend="onnxruntime",
        precision=precision,
        device=device.name,
        threads=threads,
        inputs=inputs,
        outputs=outputs,
        files=digest_files(path, MODEL),
        versions={**versions(), **onnx_file.versions(program)},
        notes=notes,
    )
    artifact.write()
    return artifact
