"""Compile for LiteRT (TensorFlow Lite) with XNNPACK on the CPU: model.tflite, in fp32 or int8, with channels last."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from hnas.export.backends.tflite.delegation import pieces
from hnas.export.device.artifact import TensorSpec, Written
from hnas.export.device.errors import Unavailable, one_line
from hnas.export.device.records import JSON
from hnas.export.device.runtimes.tflite import load, missing, to_runtime, versions
from hnas.export.graph.marks import kept_float
from hnas.export.int8.policy import with_one_scale
from hnas.hw_profiles import Override

if TYPE_CHECKING:
    from hnas.export.graph.program import Program
    from hnas.export.graph.samples import Samples
    from hnas.hw_profiles import Device

__all__ = ("compile", "converters", "load", "missing", "no_onnx", "precisions", "requires", "versions")

precisions: tuple[str, ...] = ("fp32", "int8")
requires: tuple[str, ...] = ("tflite",)
converters: dict[str, tuple[str, ...]] = {"fp32": ("torch",)}
no_onnx = "its file is written from the torch graph, channels last"

MODEL = "model.tflite"
NHWC = (0, 2, 3, 1)
RANGES = "mse"  # against minmax: +0.5 to +1.3 dB on MobileNets, a U-Net and a ConvNeXt, -0.6 to +1.8 dB on subnets
# Sets of operators that stay float, tried in order until int8 splits the graph into no more pieces than fp32. The
# writer itself keeps a sum in float if XNNPACK cannot rescale its inputs. The second set is for stricter runtimes.
_LEFT: tuple[frozenset[str], ...] = (frozenset(), frozenset({"ADD", "SUB", "MEAN"}))


def compile(program: Program, path: Path, *, precision: str, device: Device, calibration: Samples) -> Written:
    """Write model.tflite, with channels last in 4-D inputs. Inputs and outputs are float in int8 models too.

    1. hnas's own writer has every operator: it writes the model in milliseconds, and needs only the runtime.
    2. It lacks an operator, or LiteRT does not open its file: litert-torch converts, ai-edge-quantizer quantises, and
       ``notes["lacks"]`` names the operator or the reason.

    ``notes["layout"]`` has the permutation of every input (None: unchanged). Outputs have the layout of the module.

    Raises:
        Unavailable: a package of case 2 is not installed.
        ValueError: case 2 with single blocks in float, or with a calibration method other than minmax.
    """
    samples = calibration if precision == "int8" else None
    layout = _layout(program.signature[0])
    override = device.quantisation.get("tflite", Override())
    from hnas.export.backends.tflite.writer import Unsupported

    try:  # case 1
        notes, tools = _emit(program, path / MODEL, samples, override), dict[str, str]()
        counts = _opened(path / MODEL)
    except Unsupported as error:  # case 2
        notes, tools = _convert(program, path / MODEL, samples, override, layout, str(error))
        counts = pieces(path / MODEL)
    notes["layout"] = layout
    notes["delegates"], notes["undelegated"] = counts
    return Written((MODEL,), {**versions(), "torch": version("torch"), **tools}, notes)


def _opened(model: Path) -> tuple[int, int]:
    """Return the pieces of a file of hnas's own writer. Raise Unsupported if LiteRT refuses the file."""
    from hnas.export.backends.tflite.writer import Unsupported

    try:
        return pieces(model)
    except (RuntimeError, ValueError) as error:
        raise Unsupported(f"form that LiteRT opens ({one_line(error)})") from None


def _layout(inputs: Sequence[TensorSpec]) -> list[JSON]:
    """Return the permutation to channels last for inputs with four dimensions, None (unchanged) for others."""
    return [list(NHWC) if len(tensor.shape) == 4 else None for tensor in inputs]


def _emit(program: Program, model: Path, samples: Samples | None, override: Override) -> dict[str, JSON]:
    """Write the model with hnas's own writer, and return notes. Raise Unsupported if the writer lacks an operator."""
    from hnas.export.backends.tflite import writer as emitter
    from hnas.export.int8.apart import keep_apart
    from hnas.export.int8.calibration import activation_ranges

    whole = emitter.prepare(program)
    if samples is None:
        model.write_bytes(emitter.emit(whole))
        return {}
    emitter.lower(whole)  # raises Unsupported before the calibration, which takes time
    program, apart = keep_apart(program, samples)
    whole = emitter.prepare(program)
    method = override.ranges or RANGES
    ranges = activation_ranges(whole, samples, method)
    for more in _LEFT:
        left = more.union(override.leave_float)
        model.write_bytes(emitter.emit(whole, ranges, leave=left))
        if (found := _opened(model)) == (1, 0) or found <= _float_pieces(whole):
            break
    return {
        "quantisation": {
            "quantiser": "hnas.export.backends.tflite.writer",
            "float": sorted(left),
            "activations": "s8",
            "weights": "s8 per channel",
            "ranges": method,
            "apart": apart,
            "samples": len(samples),
        }
    }


def _float_pieces(whole: Program) -> tuple[int, int]:
    from hnas.export.backends.tflite import writer as emitter

    with TemporaryDirectory() as folder:
        model = Path(folder) / MODEL
        model.write_bytes(emitter.emit(whole))
        return pieces(model)


def _kept_apart(program: Program, samples: Samples) -> tuple[Program, list[JSON], Sequence[str]]:
    """Return the program with unlike parts divided, a record for each value, and the TFLite operators to keep in float.

    ai-edge-quantizer chooses operators by their kind only.

    1. Nothing but data movement and elementwise operators must stay in float: all kinds but the layers stay in float.
    2. A layer must stay in float: its parts have one scale, and the record says so.
    """
    from hnas.export.backends.tflite import litert
    from hnas.export.graph.nodes import LAYERS
    from hnas.export.int8.apart import keep_apart

    program, apart = keep_apart(program, samples)
    marked = set(kept_float(program))
    layers = {node.name for node in program.module.graph.nodes if node.name in marked and node.target in LAYERS}
    found: list[JSON] = []
    for record in apart:
        assert isinstance(record, dict)
        alone = record["value"] in layers  # case 2
        found += (
            with_one_scale([record], "litert-torch writes the file, and keeps no single layer") if alone else [record]
        )
    return program, found, litert.ELEMENTWISE if marked - layers else ()


def _convert(
    program: Program, model: Path, samples: Samples | None, override: Override, layout: list[JSON], lacks: str
) -> tuple[dict[str, JSON], dict[str, str]]:
    """Write the model with LiteRT's own converter and quantiser. Return the notes and the versions of both packages.

    ``lacks``: the operator that hnas's own writer lacks.
    """
    from hnas.export.backends.tflite import litert

    if samples is not None and kept_float(program):
        raise ValueError(f"tflite cannot keep single blocks in float here: hnas's own writer has no {lacks}; keep none")
    if samples is not None and override.ranges not in ("", "minmax"):
        raise ValueError(
            f"tflite calibrates by minmax alone here, got {override.ranges!r}: hnas's own writer has no {lacks}"
        )
    notes: dict[str, JSON] = {"converter": "litert-torch", "lacks": lacks}
    leave, apart = override.leave_float, list[JSON]()
    if samples is not None:
        program, apart, left = _kept_apart(program, samples)
        leave = (*leave, *left)
    try:
        if samples is None:
            litert.convert_program(program, model, layout)
        else:
            with TemporaryDirectory() as folder:
                source = Path(folder) / MODEL
                litert.convert_program(program, source, layout)
                fed = [to_runtime(each, layout) for each in samples]
                notes["quantisation"] = {**litert.quantise_file(source, model, fed, leave), "apart": apart}
    except Unavailable as error:
        raise Unavailable(f"hnas's own TFLite writer has no {lacks}, and {error}") from None
    return notes, litert.package_versions(quantiser=samples is not None)
