"""A program as an ONNX file: where the two backends that read ONNX start from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.artifact import Tensor
from export.errors import ExportError, one_line
from export.quiet import quiet

if TYPE_CHECKING:
    import onnx

    from export.program import Program

TORCH_OPSETS = (18, 20)  # torch writes invalid graphs when asked for less than 18


def write(program: Program, path: Path, inputs: Sequence[Tensor], outputs: Sequence[Tensor], opset: int = 20) -> None:
    """Write ``program`` to ``path`` in ``opset`` (17 to 20), with the names of ``inputs`` and ``outputs``.

    Opset 17 is torch's opset 18 taken down by ONNX's own converter and checked. ExportError names what cannot be said.
    """
    import torch

    from export.passes.onnxruntime import part_pads

    program = part_pads(program)
    with quiet():
        try:
            exported = torch.onnx.export(
                torch.export.export(program.module, program.inputs),
                program.inputs,
                dynamo=True,
                opset_version=max(opset, TORCH_OPSETS[0]),
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
    if opset < TORCH_OPSETS[0]:
        _lower(path, opset)


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


def _lower(path: Path, opset: int) -> None:
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
