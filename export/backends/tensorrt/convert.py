"""Compile for TensorRT: model.onnx in fp32, fp16 or explicit int8, from which the device builds its engine.

An engine fits one GPU architecture and one TensorRT version, so the device builds it. The ONNX file is verified in ONNX
Runtime, and the notes say how to build the engine and what it fits.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from hnas.export.backends.tensorrt import rtx as tensorrt_rtx
from hnas.export.backends.tensorrt import rules as tensorrt_rules
from hnas.export.backends.tensorrt.inspector import from_json
from hnas.export.device.artifact import Written
from hnas.export.device.dynamic import NOTE, DynamicSize
from hnas.export.device.errors import ExportError, Unavailable
from hnas.export.device.records import JSON
from hnas.export.device.runtimes.tensorrt import ENGINE, load, missing, versions
from hnas.export.device.trtexec import FLAGS, shape_flags
from hnas.export.onnx.quantiser import QDQ
from hnas.export.onnx.source import OnnxSource

if TYPE_CHECKING:
    from hnas.export.graph.program import Program
    from hnas.export.graph.samples import Samples
    from hnas.hw_profiles import Device

__all__ = ("compile", "converters", "load", "missing", "no_onnx", "precisions", "requires", "versions")

precisions: tuple[str, ...] = ("fp32", "fp16", "int8")
requires: tuple[str, ...] = ("tensorrt",)
converters: dict[str, tuple[str, ...]] = {"fp32": ("torch", "onnx", "onnxscript", "onnxruntime")}
no_onnx = ""

MODEL = "model.onnx"
_TIMES = 8  # the largest dynamic size, in sizes of the examples, where the caller gives none
OPSET = 17  # TensorRT 8.5 to 10 parse it; opset 20 needs TensorRT 10 (JetPack 6.1)
_RULE = "build the engine on the device that runs it; an engine of another SM or TensorRT version is refused"
# TensorRT supports only the zero point 0, so s8 is symmetric. It refuses int32 dequantise, so biases stay float.
POLICY = QDQ(operators=("Conv", "Gemm", "MatMul"), activations="s8", symmetric=True, bias=False)


def compile(
    program: Program | OnnxSource, path: Path, *, precision: str, device: Device, calibration: Samples
) -> Written:
    """Write model.onnx in opset 17, or in the older opset of an ONNX file, with float32 inputs and outputs.

    TensorRT need not be installed.

    Raises:
        Unavailable: onnx or onnxscript is not installed.
        ExportError: the TensorRT of the device does not support the graph, or fp16 cannot hold a weight.
    """
    if not (find_spec("onnx") and find_spec("onnxscript")):
        raise Unavailable("onnx and onnxscript are not installed; pip install 'hnas[tensorrt-convert]'")
    from hnas.export.onnx import file as onnx_file

    inputs, outputs = program.signature
    size = _bounded(program)
    build = _build_note(precision, device, shape_flags(inputs, size))
    notes: dict[str, JSON] = {"verify_with": "onnxruntime", "build": build}
    if size is not None:
        notes[NOTE] = size.to_json()
    if precision == "int8":
        policy = POLICY.on(device.quantisation.get("tensorrt"))
        written = onnx_file.write_onnx_int8(program, path / MODEL, inputs, outputs, calibration, policy, OPSET)
        notes["quantisation"] = written
    else:
        if precision == "fp16" and not isinstance(program, OnnxSource):
            program = _half(program)
        onnx_file.write_onnx(program, path / MODEL, inputs, outputs, newest=OPSET)
        if precision == "fp16" and isinstance(program, OnnxSource):
            onnx_file.convert_to_fp16(path / MODEL)
    build["opset"] = onnx_file.read_opset(path / MODEL)
    if slow := _check(path / MODEL, precision, device.toolchain, "" if size is None else size.name):
        notes["slow"] = slow
    build.update(tensorrt_rtx.rtx_note(path / MODEL))
    return Written((MODEL,), onnx_file.writer_versions(program), notes)


def _bounded(program: Program | OnnxSource) -> DynamicSize | None:
    """Return the dynamic size with a largest value, which an engine needs: without one, eight times the examples'."""
    size = program.dynamic
    if size is None or size.high is not None:
        return size
    shapes = [tensor.shape for tensor in program.signature[0]]
    (usual, *_) = (shape[axis] for shape, axis in zip(shapes, size.inputs, strict=True) if axis is not None)
    return replace(size, high=_TIMES * usual)


def _build_note(precision: str, device: Device, shapes: Sequence[str]) -> dict[str, JSON]:
    """Return the command that builds the engine on the device, and the versions of the device's profile."""
    known = {name: str(device.toolchain[name]) for name in ("JetPack", "TensorRT") if name in device.toolchain}
    return {
        "command": f"trtexec --onnx={MODEL} --saveEngine={ENGINE} {' '.join([*FLAGS[precision], *shapes])}",
        "compute_capability": device.compute_capability,
        "rule": _RULE,
        **known,
    }


def _check(path: Path, precision: str, toolchain: Mapping[str, str], open_size: str) -> list[str]:
    """Return sentences on parts that run slowly. Raise ExportError if the device's newest TensorRT refuses the file."""
    found = [tuple(map(int, pair)) for pair in re.findall(r"(\d+)\.(\d+)", str(toolchain.get("TensorRT", "")))]
    refused, slow = tensorrt_rules.check_model(path, precision, max(found, default=None), open_size)
    if refused:
        raise ExportError("; ".join(refused))
    return list(slow)


def engine_figures(report: Mapping[str, JSON]) -> dict[str, JSON]:
    """Return the figures of a device's report on its engine: builds, precisions of the layers, reformats."""
    layers = from_json(report["layers"])
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
    }


def _half(program: Program) -> Program:
    """Return the program in fp16 with float32 inputs and outputs. Raise ExportError if fp16 cannot hold a weight."""
    import torch
    from torch import fx
    from torch.fx.node import map_aggregate

    from hnas.export.graph.program import rebuild

    aten, half, single = torch.ops.aten, torch.float16, torch.float32
    graph = fx.Graph()
    nodes: dict[fx.Node, fx.Node] = {}
    for node in program.module.graph.nodes:
        if node.op == "output":
            (found,) = node.args
            values = [nodes[value] for value in (found if isinstance(found, tuple | list) else [found])]
            ends = [graph.call_function(aten.to.dtype, (value, single)) for value in values]
            graph.output(tuple(ends) if isinstance(found, tuple | list) else ends[0])
            continue
        nodes[node] = copy = graph.node_copy(node, lambda value: nodes[value])
        copy.args = map_aggregate(copy.args, lambda value: half if value is single else value)
        copy.kwargs = map_aggregate(copy.kwargs, lambda value: half if value is single else value)
        if node.op == "placeholder" and node.meta["val"].dtype == single:
            nodes[node] = graph.call_function(aten.to.dtype, (copy, half))
    module = fx.GraphModule(dict(program.module.state_dict()), graph)
    module = rebuild(module, graph).half()
    for name, value in module.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            raise ExportError(f"weight {name} is out of the range of fp16; choose fp32 or int8")
    return replace(program, module=module)
