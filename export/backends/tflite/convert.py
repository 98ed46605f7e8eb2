"""Compile for LiteRT (TensorFlow Lite) with XNNPACK on the CPU: model.tflite, in fp32 or int8, channels last."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from hnas.export.backends.tflite.delegation import pieces
from hnas.export.device.artifact import TensorSpec, Written
from hnas.export.device.errors import Unavailable
from hnas.export.device.records import JSON
from hnas.export.device.runtimes.tflite import load, missing, to_runtime, versions
from hnas.export.graph.marks import kept_float
from hnas.hw_profiles import Override

if TYPE_CHECKING:
    from hnas.export.graph.program import Program
    from hnas.export.graph.samples import Samples
    from hnas.hw_profiles import Device

__all__ = ("compile", "load", "missing", "no_onnx", "precisions", "requires", "versions")

precisions: tuple[str, ...] = ("fp32", "int8")
requires: tuple[str, ...] = ("tflite",)
no_onnx = "its file is written from the torch graph, channels last"

MODEL = "model.tflite"
NHWC = (0, 2, 3, 1)
RANGES = "mse"  # 0.5 to 1.3 dB above minmax on MobileNets, a U-Net and a ConvNeXt, -0.6 to 1.8 dB on searched subnets
# Operators that stay float, tried in order until int8 leaves the graph in as few pieces as fp32. The writer itself
# keeps sums in float whose scales are too far apart for XNNPACK; the second set is for runtimes that are stricter.
_LEFT: tuple[frozenset[str], ...] = (frozenset(), frozenset({"ADD", "SUB", "MEAN"}))


def compile(program: Program, path: Path, *, precision: str, device: Device, calibration: Samples) -> Written:
    """Write model.tflite, with 4-D inputs channels last, and float inputs and outputs in int8, too.

    1. hnas's own writer has every operator: it writes the model, in milliseconds and with the runtime alone.
    2. It lacks one: litert-torch converts, ai-edge-quantizer quantises, and ``notes["lacks"]`` names the operator.

    ``notes["layout"]`` has the permutation of every input (None: unchanged). Outputs have the layout of the module.

    Raises:
        Unavailable: a package of case 2 is not installed.
        ValueError: case 2 with single blocks in float.
    """
    samples = calibration if precision == "int8" else None
    layout = _layout(program.signature[0])
    override = device.quantisation.get("tflite", Override())
    from hnas.export.backends.tflite.writer import Unsupported

    try:  # case 1
        notes, tools = _emit(program, path / MODEL, samples, override), dict[str, str]()
    except Unsupported as error:  # case 2
        notes, tools = _convert(program, path / MODEL, samples, override, layout, str(error))
    notes["layout"] = layout
    notes["delegates"], notes["undelegated"] = pieces(path / MODEL)
    return Written((MODEL,), {**versions(), "torch": version("torch"), **tools}, notes)


def _layout(inputs: Sequence[TensorSpec]) -> list[JSON]:
    """Return the permutation to channels last for inputs with four dimensions, None (unchanged) for others."""
    return [list(NHWC) if len(tensor.shape) == 4 else None for tensor in inputs]


def _emit(program: Program, model: Path, samples: Samples | None, override: Override) -> dict[str, JSON]:
    """Write the model by hnas's own writer. Raise Unsupported that names a missing operator."""
    from hnas.export.backends.tflite import writer as emitter
    from hnas.export.int8.calibration import activation_ranges

    whole = emitter.prepare(program)
    if samples is None:
        model.write_bytes(emitter.emit(whole))
        return {}
    emitter.lower(whole)  # a missing operator is named before calibration
    method = override.ranges or RANGES
    ranges = activation_ranges(whole, samples, method)
    for more in _LEFT:
        left = more.union(override.leave_float)
        model.write_bytes(emitter.emit(whole, ranges, leave=left))
        if pieces(model) == (1, 0) or pieces(model) <= _float_pieces(whole):
            break
    return {
        "quantisation": {
            "quantiser": "hnas.export.backends.tflite.writer",
            "float": sorted(left),
            "activations": "s8",
            "weights": "s8 per channel",
            "ranges": method,
            "samples": len(samples),
        }
    }


def _float_pieces(whole: Program) -> tuple[int, int]:
    from hnas.export.backends.tflite import writer as emitter

    with TemporaryDirectory() as folder:
        model = Path(folder) / MODEL
        model.write_bytes(emitter.emit(whole))
        return pieces(model)


def _convert(
    program: Program, model: Path, samples: Samples | None, override: Override, layout: list[JSON], lacks: str
) -> tuple[dict[str, JSON], dict[str, str]]:
    """Write the model by LiteRT's own converter and quantiser. Return the notes and the versions of the two."""
    from hnas.export.backends.tflite import litert

    if samples is not None and kept_float(program):
        raise ValueError(f"tflite cannot keep single blocks in float here: hnas's own writer has no {lacks}; keep none")
    if samples is not None and override.ranges not in ("", "minmax"):
        raise ValueError(
            f"tflite calibrates by minmax alone here, got {override.ranges!r}: hnas's own writer has no {lacks}"
        )
    notes: dict[str, JSON] = {"converter": "litert-torch", "lacks": lacks}
    try:
        if samples is None:
            litert.convert_program(program, model, layout)
        else:
            with TemporaryDirectory() as folder:
                source = Path(folder) / MODEL
                litert.convert_program(program, source, layout)
                fed = [to_runtime(each, layout) for each in samples]
                notes["quantisation"] = litert.quantise_file(source, model, fed, override.leave_float)
    except Unavailable as error:
        raise Unavailable(f"hnas's own TFLite writer has no {lacks}, and {error}") from None
    return notes, litert.package_versions(quantiser=samples is not None)
