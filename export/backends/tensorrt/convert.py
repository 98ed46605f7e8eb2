"""Compile for TensorRT: model.onnx in fp32, fp16 or explicit int8, from which the device builds its engine.

An engine fits one GPU architecture and one TensorRT version, so the device builds it. The file states the type of every
value, because TensorRT 11 knows only strongly typed networks. The ONNX file is verified in ONNX Runtime, and the notes
say how to build the engine and what it fits.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from hnas.export.backends.tensorrt import rtx as tensorrt_rtx
from hnas.export.backends.tensorrt import rules as tensorrt_rules
from hnas.export.backends.tensorrt.inspector import from_json, layers_above
from hnas.export.device.artifact import Written
from hnas.export.device.dynamic import NOTE, DynamicSize
from hnas.export.device.engine_types import OLD_MODEL, TYPED, TYPES, held_names, precision_flags
from hnas.export.device.errors import ExportError, Unavailable
from hnas.export.device.records import JSON
from hnas.export.device.runtimes.tensorrt import ENGINE, load, missing, versions
from hnas.export.device.trtexec import shape_flags
from hnas.export.graph.samples import random_sample
from hnas.export.onnx.quantiser import QDQ, quantised_nodes
from hnas.export.onnx.source import OnnxSource
from hnas.export.onnx.stated import stated_types
from hnas.export.proof.verification import LIMITS

if TYPE_CHECKING:
    from hnas.export.graph.program import Program
    from hnas.export.graph.samples import Samples
    from hnas.export.onnx.halving import HalfPlan
    from hnas.hw_profiles import Device

__all__ = ("compile", "converters", "load", "missing", "no_onnx", "precisions", "requires", "versions")

precisions: tuple[str, ...] = ("fp32", "fp16", "int8")
requires: tuple[str, ...] = ("tensorrt",)
converters: dict[str, tuple[str, ...]] = {"fp32": ("torch", "onnx", "onnxscript", "onnxruntime")}
no_onnx = ""

MODEL = "model.onnx"
_TIMES = 8  # the largest dynamic size, in sizes of the examples, where the caller gives none
OPSET = 17  # TensorRT 8.5 to 11 parse it
_TYPED_OPSET = 19  # the first one whose quantisers can have scales in fp16; TensorRT 10 and 11 parse it
_RULE = "build the engine on the device that runs it; an engine of another SM or TensorRT version is refused"
# TensorRT supports only the zero point 0, so s8 is symmetric. It refuses int32 dequantise, so biases stay float. In
# attention only the linear layers are int8: products of two activations are never quantised, see quantise_onnx.
POLICY = QDQ(operators=("Conv", "Gemm", "MatMul"), activations="s8", symmetric=True, bias=False, outputs=False)


def compile(
    program: Program | OnnxSource, path: Path, *, precision: str, device: Device, calibration: Samples
) -> Written:
    """Write model.onnx with float32 inputs and outputs. TensorRT need not be installed.

    1. fp32: opset 17, or the older opset of an ONNX file.
    2. fp16: the same in fp16, with the nodes in fp32 that `choose_kept` finds on the samples.
    3. int8: the graph of case 2 in opset 19, with quantisers in fp16.
    4. int8, and the device may have TensorRT 8, which knows no types: also model-trt8.onnx, the graph of case 3 in
       fp32 and opset 17.

    calibration: samples for int8 and fp16; none for fp16: noise.

    Raises:
        Unavailable: onnx or onnxscript is not installed.
        ExportError: the TensorRT of the device does not support the graph, or fp16 cannot hold its values.
    """
    if not (find_spec("onnx") and find_spec("onnxscript")):
        raise Unavailable("onnx and onnxscript are not installed; pip install 'hnas[tensorrt-convert]'")
    from hnas.export.onnx import file as onnx_file

    inputs, outputs = program.signature
    size = _bounded(program)
    notes: dict[str, JSON] = {} if device.local else {"verify_with": "onnxruntime"}
    if size is not None:
        notes[NOTE] = size.to_json()
    files: tuple[str, ...] = (MODEL,)
    if precision == "int8":
        files = _write_int8(program, path, device, calibration, notes)
    else:
        onnx_file.write_onnx(program, path / MODEL, inputs, outputs, newest=OPSET)
        if precision == "fp16":
            plan = _plan(path / MODEL, calibration or (random_sample(inputs),))
            onnx_file.convert_to_fp16(path / MODEL, plan.kept)
            notes[TYPES] = stated_types(path / MODEL, plan)
    types: dict[str, JSON] = notes.get(TYPES, {})
    notes["build"] = build = _build_note(precision, device, shape_flags(inputs, size), held_names(types))
    build["opset"] = onnx_file.read_opset(path / MODEL)
    if slow := _check(path / MODEL, precision, device.toolchain, "" if size is None else size.name):
        notes["slow"] = slow
    build.update(tensorrt_rtx.rtx_note(path / MODEL))
    return Written(files, onnx_file.writer_versions(program), notes)


def _plan(path: Path, samples: Samples) -> HalfPlan:
    import onnx

    from hnas.export.onnx.halving import choose_kept

    return choose_kept(onnx.load(path), samples, LIMITS["fp16"].sqnr_db)


def _write_int8(
    program: Program | OnnxSource, path: Path, device: Device, samples: Samples, notes: dict[str, JSON]
) -> tuple[str, ...]:
    """Write the files of int8: cases 3 and 4 of ``compile``. Return their names, and add to ``notes``."""
    from hnas.export.onnx import file as onnx_file

    plans: list[HalfPlan] = []

    def spare(prepared: Path) -> Collection[str]:
        plans.append(_plan(prepared, samples))
        return plans[0].kept

    inputs, outputs = program.signature
    policy = POLICY.on(device.quantisation.get("tensorrt"))
    notes["quantisation"] = onnx_file.write_onnx_int8(
        program, path / MODEL, inputs, outputs, samples, policy, OPSET, spare
    )
    old = any(version < TYPED for version in _tensorrt_versions(device.toolchain))
    if old:  # case 4
        shutil.copyfile(path / MODEL, path / OLD_MODEL)
    onnx_file.convert_opset(path / MODEL, _TYPED_OPSET)
    onnx_file.convert_to_fp16(path / MODEL, plans[0].kept)
    notes[TYPES] = {**stated_types(path / MODEL, plans[0]), "int8": quantised_nodes(path / MODEL)}
    return (MODEL, OLD_MODEL) if old else (MODEL,)


def _bounded(program: Program | OnnxSource) -> DynamicSize | None:
    """Return the dynamic size with a largest value, which an engine needs: without one, eight times the examples'."""
    size = program.dynamic
    if size is None or size.high is not None:
        return size
    shapes = [tensor.shape for tensor in program.signature[0]]
    (usual, *_) = (shape[axis] for shape, axis in zip(shapes, size.inputs, strict=True) if axis is not None)
    return replace(size, high=_TIMES * usual)


def _build_note(precision: str, device: Device, shapes: Sequence[str], kept: Sequence[str]) -> dict[str, JSON]:
    """Return the commands that build the engine on the device, and the versions of the device's profile.

    ``command`` is for TensorRT 10 and newer, ``command_trt8`` for TensorRT 8, if the device may have it.
    """
    known = {name: str(device.toolchain[name]) for name in ("JetPack", "TensorRT") if name in device.toolchain}
    versions = _tensorrt_versions(device.toolchain) or [TYPED]
    for name, version in (("command_trt8", min(versions)), ("command", max(versions))):
        if name == "command" or version < TYPED:
            model = OLD_MODEL if precision == "int8" and version < TYPED else MODEL
            try:
                flags = [*precision_flags(precision, version, kept), *shapes]
            except ExportError as error:  # the bindings can still build it
                known[name] = str(error)
                continue
            known[name] = f"trtexec --onnx={model} --saveEngine={ENGINE} {shlex.join(flags)}"
    return {"compute_capability": device.compute_capability, "rule": _RULE, **known}


def _tensorrt_versions(toolchain: Mapping[str, str]) -> list[tuple[int, ...]]:
    """Return the oldest and the newest version of TensorRT in the profile of a device; empty if there is none."""
    return [tuple(map(int, pair)) for pair in re.findall(r"(\d+)\.(\d+)", str(toolchain.get("TensorRT", "")))]


def _check(path: Path, precision: str, toolchain: Mapping[str, str], open_size: str) -> list[str]:
    """Return sentences on parts that run slowly. Raise ExportError if the device's newest TensorRT refuses the file."""
    newest = max(_tensorrt_versions(toolchain), default=None)
    refused, slow = tensorrt_rules.check_model(path, precision, newest, open_size)
    if refused:
        raise ExportError("; ".join(refused))
    return list(slow)


def engine_figures(report: Mapping[str, JSON]) -> dict[str, JSON]:
    """Return the figures of a device's report on its engine: builds, precisions of the layers, reformats.

    "above" has a sentence on each layer that runs above its stated precision. A provider of ONNX Runtime tells only its
    name.
    """
    if "layers" not in report:
        return {"built_by": report["by"]}
    layers, types = from_json(report["layers"]), report.get(TYPES, {})
    medians = [float(build["median_ms"]) for build in report["builds"]]
    moved = sum(layer.role == "layout" for layer in layers)
    computing = Counter(layer.precision or "unknown" for layer in layers if layer.role != "layout")
    return {
        "sm": report["sm"],
        "tensorrt": report["tensorrt"],
        "built_by": report["by"],
        "build_seconds": [build["seconds"] for build in report["builds"]],
        "build_medians_ms": medians,
        "spread": max(medians) / min(medians) - 1,
        "layers": len(layers),
        "reformats": moved,
        "precisions": dict(computing),
        "above": layers_above(report["layers"], report["precision"], types.get("fp32", ()), types.get("int8", ())),
    }
