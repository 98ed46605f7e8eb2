"""Compile for ONNX Runtime on the CPU: model.onnx, in fp32 or in explicit int8."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from hnas.export.device.artifact import Written
from hnas.export.device.errors import Unavailable
from hnas.export.device.records import JSON
from hnas.export.device.runtimes.onnxruntime import load, missing, versions
from hnas.export.onnx.quantiser import QDQ
from hnas.export.onnx.source import OnnxSource

if TYPE_CHECKING:
    from hnas.export.graph.program import Program
    from hnas.export.graph.samples import Samples
    from hnas.hw_profiles import Device

__all__ = ("compile", "converters", "load", "missing", "no_onnx", "precisions", "requires", "versions")

precisions: tuple[str, ...] = ("fp32", "int8")
requires: tuple[str, ...] = ("onnxruntime",)
converters: dict[str, tuple[str, ...]] = {"fp32": ("torch", "onnx", "onnxscript")}
no_onnx = ""

MODEL = "model.onnx"
# With other activations than u8, convolutions are not fused, which is two to three times slower. The cheap operators
# between convolutions are also quantised: in float, each would need a dequantise and a quantise operator. LayerNorm,
# Softmax and GELU do not get faster in int8. The ranges gain 4 dB on photographs unlike the calibration's (ResNet-50),
# and 0 to 0.2 dB on MobileNetV2 and EfficientNet-Lite0, against minmax.
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
    ranges="unseen",
)


def compile(
    program: Program | OnnxSource, path: Path, *, precision: str, device: Device, calibration: Samples
) -> Written:
    """Write model.onnx, in opset 20 or in the opset of the given ONNX file.

    Raises:
        Unavailable: onnx or onnxscript is not installed.
    """
    if not (find_spec("onnx") and find_spec("onnxscript")):
        raise Unavailable("onnx and onnxscript are not installed; pip install 'hnas[onnxruntime-convert]'")
    from hnas.export.onnx import file as onnx_file

    inputs, outputs = program.signature
    notes: dict[str, JSON] = {}
    if precision == "int8":
        policy = POLICY.on(device.quantisation.get("onnxruntime"))
        written = onnx_file.write_onnx_int8(program, path / MODEL, inputs, outputs, calibration, policy)
        notes["quantisation"] = written
    else:
        onnx_file.write_onnx(program, path / MODEL, inputs, outputs)
    return Written((MODEL,), {**versions(), **onnx_file.writer_versions(program)}, notes)
