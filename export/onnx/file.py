"""A program as an ONNX file, or a foreign file in another opset: where the backends that read ONNX start from."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hnas.export.device.artifact import Tensor
from hnas.export.device.errors import ExportError, one_line
from hnas.export.graph.samples import Arrays
from hnas.export.onnx import checks as onnx_checks
from hnas.export.onnx.quantiser import QDQ, quantise_onnx
from hnas.export.onnx.source import OnnxSource
from hnas.export.remote.quiet import quiet

if TYPE_CHECKING:
    import onnx

    from hnas.export.graph.program import Program

_QDQ_OPSET = 13  # the first with scales per channel
_MAKERS = ("torch", "onnxscript")
_TORCH_OPSETS = (18, 20)  # torch writes invalid graphs when asked for less than 18


def write(program: Program, path: Path, inputs: Sequence[Tensor], outputs: Sequence[Tensor], opset: int = 20) -> None:
    """Write ``program`` to ``path`` in ``opset`` (17 to 20), with the names of ``inputs`` and ``outputs``.

    Opset 17 is torch's opset 18 taken down by ONNX's own converter and checked. ExportError names what cannot be said.
    """
    import torch

    from hnas.export.onnx.fixes import part_pads

    program = part_pads(program)
    with quiet():
        try:
            exported = torch.onnx.export(
                torch.export.export(program.module, program.inputs),
                program.inputs,
                dynamo=True,
                opset_version=max(opset, _TORCH_OPSETS[0]),
                input_names=[tensor.name for tensor in inputs],
                output_names=[tensor.name for tensor in outputs],
                verbose=False,
                external_data=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(f"torch.onnx cannot export this graph at opset {opset}: {one_line(error)}") from error
    assert exported is not None
    _drop_origins(exported.model)
    exported.save(str(path))
    if opset < _TORCH_OPSETS[0]:
        _restate(path, opset)


def put(
    program: Program | OnnxSource,
    path: Path,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    *,
    oldest: int = 1,
    newest: int | None = None,
) -> None:
    """Write what a backend compiles to ``path``: a program as ``write`` does, in opset ``newest`` (None: 20).

    A foreign file stays in its own opset, or goes to the nearest from ``oldest`` to ``newest`` by ONNX's own converter.
    ExportError where it cannot.
    """
    if not isinstance(program, OnnxSource):
        write(program, path, inputs, outputs, newest or _TORCH_OPSETS[1])
        return
    own = int(program.notes["opset"].get("ai.onnx", oldest))
    opset = max(oldest, own if newest is None else min(own, newest))
    shutil.copyfile(program.path, path)
    if opset != own:
        _restate(path, opset)


def put_int8(
    program: Program | OnnxSource,
    path: Path,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    data: Sequence[Arrays],
    policy: QDQ,
    newest: int | None = None,
) -> None:
    """As ``put``, in explicit int8 under ``policy``, with ranges over ``data``.

    ExportError where the policy calibrates a foreign file by anything but extremes.
    """
    ranges = None
    if policy.ranges != "minmax":
        if isinstance(program, OnnxSource):
            raise ExportError(f"an ONNX file is calibrated by minmax; {policy.ranges} needs the torch module")
        from hnas.export.int8.calibration import activation_ranges

        ranges = activation_ranges(program, data, policy.ranges)
    source = path.with_name("float.onnx")
    put(program, source, inputs, outputs, oldest=_QDQ_OPSET, newest=newest)
    quantise_onnx(source, path, data, policy, program, ranges)
    source.unlink()


def halve(path: Path) -> None:
    """Say the file in fp16 between its ends, by ONNX Runtime's tool; ExportError for a constant out of its range."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(path)
    for constant in onnx_checks.constants(model.graph):
        if constant.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(constant)
            if (np.abs(values) > np.finfo(np.float16).max).any():
                raise ExportError(f"weight {constant.name} is out of the range of fp16; choose fp32 or int8")
    onnx.save(convert_float_to_float16(model, keep_io_types=True), path)


def versions(program: Program | OnnxSource) -> dict[str, str]:
    """The versions of what writes a file."""
    return {name: version(name) for name in (*(() if isinstance(program, OnnxSource) else _MAKERS), "onnx")}


def opset(path: Path) -> int:
    """The opset that the file is written in."""
    import onnx

    return max((each.version for each in onnx.load(path).opset_import if each.domain in ("", "ai.onnx")), default=0)


def operators(path: Path) -> dict[str, int]:
    """How often the file uses each operator."""
    import onnx

    names = [node.op_type for node in onnx.load(path).graph.node]
    return {name: names.count(name) for name in sorted(set(names))}


def _drop_origins(model: Any) -> None:
    """Remove which lines of whose files each node came from: it is nobody's business, and differs from run to run."""
    model.metadata_props.clear()
    for graph in (model.graph, *model.functions.values()):
        graph.metadata_props.clear()
        for node in graph.all_nodes():
            for part in (node, *node.outputs):
                part.metadata_props.clear()
        for value in (*graph.inputs, *getattr(graph, "initializers", {}).values()):
            value.metadata_props.clear()


def _restate(path: Path, opset: int) -> None:
    """Say the file in another opset."""
    import onnx
    from onnx import checker, version_converter

    model = onnx.load(path)
    for node in model.graph.node:
        _drop_default(node)
    try:
        model = version_converter.convert_version(model, opset)
        checker.check_model(model, full_check=True)
    except (RuntimeError, checker.ValidationError) as error:
        raise ExportError(f"this graph cannot be said in ONNX opset {opset}: {one_line(error)}") from error
    onnx.save(model, path)


def _drop_default(node: onnx.NodeProto) -> None:
    """Remove the attribute that opset 18 gave to reductions where it repeats its default: 17 has no word for it."""
    for attribute in list(node.attribute):
        if attribute.name == "noop_with_empty_axes" and attribute.i == 0:
            node.attribute.remove(attribute)
