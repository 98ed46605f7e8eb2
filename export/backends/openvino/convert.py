"""Compile for OpenVINO on the CPU: model.xml and model.bin, in fp32, bf16, int8, or with int8 weights only (w8)."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from hnas.export.backends.openvino.quantiser import compress_weights, quantise_model, weight_bits
from hnas.export.device.artifact import TensorSpec, Written
from hnas.export.device.errors import ExportError, Unavailable, one_line, printable
from hnas.export.device.machine import Machine
from hnas.export.device.records import JSON
from hnas.export.device.runtimes.openvino import load, missing, require, versions
from hnas.export.graph.marks import kept_float
from hnas.export.onnx.apart import float_nodes
from hnas.export.onnx.biases import EDIT, correct_biases
from hnas.export.onnx.names import openvino_nodes
from hnas.export.onnx.source import OnnxSource
from hnas.export.onnx.walk import nodes, shown
from hnas.export.remote.quiet import quiet
from hnas.hw_profiles import Override

if TYPE_CHECKING:
    import openvino

    from hnas.export.graph.program import Program
    from hnas.export.graph.samples import Samples
    from hnas.hw_profiles import Device

__all__ = ("compile", "converters", "load", "missing", "no_onnx", "precisions", "requires", "versions")

precisions: tuple[str, ...] = ("fp32", "bf16", "int8", "w8")
requires: tuple[str, ...] = ("openvino",)
converters: dict[str, tuple[str, ...]] = {"fp32": ("torch",), "int8": ("nncf",), "w8": ("nncf",)}
no_onnx = ""

MODEL = "model.xml"
RANGES = "minmax"
_FITTED = frozenset({"correct_biases", "round_weights", "finetune"})  # edits that fit the biases to int8


def compile(
    program: Program | OnnxSource, path: Path, *, precision: str, device: Device, calibration: Samples
) -> Written:
    """Write model.xml and model.bin. Raise Unavailable for bf16 on a CPU that does not have it."""
    import openvino

    require(precision)
    notes: dict[str, JSON] = {}
    override = device.quantisation.get("openvino", Override())
    found = dict(versions())
    if isinstance(program, OnnxSource):
        if program.edits and override.leave_float:  # a layer that stays in float has no error by rounding
            raise ExportError("biases are not corrected where kinds of layers stay in float")
        model, kept, apart = _model_of_file(program, calibration if precision == "int8" else None)
    else:
        from hnas.export.graph.dynamic import has_open_sizes

        program, apart = _prepared(program, calibration, precision, override)
        inputs, outputs = program.signature
        open_sizes = program.dynamic is not None and has_open_sizes(program.module)
        model = (_convert_by_onnx if open_sizes else _convert)(program, inputs, outputs)
        kept = openvino_nodes(program, [op.get_friendly_name() for op in model.get_ops()], kept_float(program))
        found["torch"] = version("torch")
    if precision == "int8":
        model, policy = quantise_model(
            model,
            calibration,
            ranges=override.ranges or RANGES,
            kept=kept,
            float_types=override.leave_float,
            correction="none" if program.draft else "before" if _is_fitted(program) else "layer by layer",
        )
        notes["quantisation"] = {**policy, "apart": apart}
        found["nncf"] = version("nncf")
    if precision == "w8":
        model, notes["quantisation"] = compress_weights(model)
        found["nncf"] = version("nncf")
    openvino.save_model(model, path / MODEL, compress_to_fp16=False)
    return Written((MODEL, "model.bin"), found, notes)


def _model_of_file(source: OnnxSource, calibration: Samples | None) -> tuple[openvino.Model, list[str], list[JSON]]:
    """Return the model of an ONNX file, the nodes that stay in float, and the parts that have a scale each.

    calibration: the inputs for int8; None: another precision, in which nothing is kept apart.
    """
    if calibration is None or not find_spec("onnxruntime"):
        if source.edits:
            raise ExportError("an ONNX file is edited by onnxruntime, which is not installed")
        return _read(source), [], []
    spared, apart = float_nodes(Path(source.path), calibration, at_ends=False)
    with TemporaryDirectory() as folder:
        if EDIT in source.edits:
            copy = Path(shutil.copy(source.path, folder))
            correct_biases(copy, calibration, spared, weight_bits())
            source = replace(source, path=str(copy))
        model = _read(source)
    return model, sorted(spared & {op.get_friendly_name() for op in model.get_ops()}), apart


def _prepared(program: Program, calibration: Samples, precision: str, override: Override) -> tuple[Program, list[JSON]]:
    """Return the program with the edits that OpenVINO needs in ``precision``, and the parts that have a scale each."""
    from hnas.export.backends.openvino.fixes import apply_fixes
    from hnas.export.backends.openvino.fixes_int8 import apply_int8_fixes
    from hnas.export.graph.dynamic import keeps_size
    from hnas.export.int8.apart import keep_apart

    if precision != "int8":
        return keeps_size(apply_fixes, program), []
    program, apart = keep_apart(program, calibration, at_ends=False)
    program = keeps_size(apply_fixes, program)
    program = keeps_size(lambda each: apply_int8_fixes(each, calibration), program)
    return keeps_size(lambda each: _corrected(each, calibration, override), program), apart


def _corrected(program: Program, samples: Samples, override: Override) -> Program:
    """Return the program with biases that are fitted to int8.

    1. A draft, or a program that an edit has fitted: unchanged.
    2. A CPU whose int8 sums overflow: unchanged, because the weights of its file have 7 bits and other errors. NNCF
       corrects the biases there (52 dB instead of 48 dB on a network of six convolutions).
    3. Kinds of layers that stay in float: unchanged, because the simulation would count their int8 errors.
    4. Otherwise: corrected.
    """
    from hnas.export.int8.calibration import activation_ranges
    from hnas.export.int8.rounding import correct_biases

    if program.draft or _is_fitted(program) or Machine.here().sums_overflow or override.leave_float:
        return program
    ranges = activation_ranges(program, samples, override.ranges or RANGES)
    return correct_biases(program, samples, ranges, new=False)


def _is_fitted(program: Program | OnnxSource) -> bool:
    return bool(_FITTED & {name for name, count in program.fired if count})


def _convert(program: Program, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> openvino.Model:
    """Return the OpenVINO model of ``program`` with static shapes and the names of ``inputs`` and ``outputs``.

    ``openvino.convert_model`` traces twice, visits every submodule and sends telemetry for each call. With a flat
    trace, the same front end makes the same graph about ten times faster, which shortens a search.
    """
    import openvino
    import torch
    from openvino import _offline_transformations as offline
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    size = program.dynamic
    with quiet(), torch.no_grad():
        try:
            traced = torch.jit.trace(_flat(program), program.inputs, check_trace=False)  # type: ignore[no-untyped-call]
            frozen = torch.jit.freeze(traced.eval(), optimize_numerics=False)
            decoder = TorchScriptPythonDecoder(frozen, example_input=program.inputs, skip_freeze=True)
            front = FrontEndManager().load_by_framework("pytorch")
            model = front.convert(front.load(decoder))
        except Exception as error:  # its errors have no common type
            raise ExportError(f"openvino cannot convert this graph: {_cause(error)}") from error
    for parameter, tensor in zip(model.get_parameters(), inputs, strict=True):
        parameter.set_element_type(openvino.Type(tensor.dtype))  # the front end may leave it open
        shape = openvino.PartialShape(list(tensor.shape))
        if size is not None and (axis := size.inputs[inputs.index(tensor)]) is not None:
            shape[axis] = openvino.Dimension(size.low, -1 if size.high is None else size.high)
        parameter.set_partial_shape(shape)
        parameter.output(0).get_tensor().set_names({tensor.name})
    model.validate_nodes_and_infer_types()
    for result, tensor in zip(model.get_results(), outputs, strict=True):
        result.output(0).get_tensor().set_names({tensor.name})
    offline.apply_moc_transformations(model, cf=False)
    return model


def _convert_by_onnx(program: Program, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> openvino.Model:
    """Return the OpenVINO model of a program that computes sizes, which a trace would make constant."""
    if not (find_spec("onnx") and find_spec("onnxscript")):
        raise Unavailable(
            "this graph computes sizes, for which onnx is needed; pip install 'hnas[onnxruntime-convert]'"
        )
    from hnas.export.onnx.file import write_program

    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_program(program, path, inputs, outputs)
        return _read(OnnxSource(str(path), "the graph", tuple(inputs), tuple(outputs), {}))


def _cause(error: Exception) -> str:
    """Return the line of a front end's error that names an operator and a reason; it is not the first."""
    text = str(error)
    for pattern in (r"-- aten::\S+ with a message:\n(.+)", r"(No conversion rule found for operations: .+)"):
        if found := re.search(pattern, text):
            return printable(found[1])[:200]
    return one_line(error)


def _read(source: OnnxSource) -> openvino.Model:
    """Return the OpenVINO model of an ONNX file. Raise ExportError if its inputs or outputs differ from the file's."""
    from openvino import _offline_transformations as offline
    from openvino.frontend import FrontEndManager

    try:
        front = FrontEndManager().load_by_framework("onnx")
        model = front.convert(front.load(source.path))
    except Exception as error:  # its errors have no common type
        if lacking := re.search(r"No conversion rule found for operations: (.+)", str(error)):
            raise ExportError(_lacking(source, lacking[1])) from error
        raise ExportError(f"openvino cannot convert {source.name}: {one_line(error)}") from error
    ends = [*zip(model.inputs, source.inputs, strict=False), *zip(model.outputs, source.outputs, strict=False)]
    if len(ends) != len(source.inputs + source.outputs) or any(t.name not in end.get_names() for end, t in ends):
        raise ExportError(f"openvino reads other inputs or outputs from {source.name} than it states")
    offline.apply_moc_transformations(model, cf=False)
    return model


def _lacking(source: OnnxSource, operators: str) -> str:
    """Return a line on operators of an ONNX file, such as "Det-17, Foo-1": their nodes, and who runs them."""
    import onnx

    kinds = re.findall(r"(\w+)-\d+", operators)
    found = [node.name or node.output[0] for node in nodes(onnx.load(source.path)) if node.op_type in kinds]
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    where = f" in node {shown(found[0])}{more}" if found else ""
    runs = str(source.notes.get("held_against", "")).startswith("onnxruntime")
    who = "supported by onnxruntime, which ran the file" if runs else "no other backend was tried"
    return f"openvino refuses {operators}{where} of {source.name}: it has no such operator; {who}"


def _flat(program: Program) -> Any:
    """Return the graph with all tensors in the top module, because tracing takes a millisecond per submodule."""
    from torch import fx

    graph = fx.Graph()
    graph.output(graph.graph_copy(program.module.graph, {}))
    state = dict(program.module.state_dict(keep_vars=True))
    names = {name: f"tensor_{index}" for index, name in enumerate(state)}
    for node in graph.nodes:
        if node.op == "get_attr":
            node.target = names[str(node.target)]
    return fx.GraphModule({names[name]: value.detach() for name, value in state.items()}, graph).eval()
