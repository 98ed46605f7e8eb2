"""Write the ONNX file that a backend compiles: ``write_onnx(program, path, inputs, outputs)``."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnas.export.device.artifact import TensorSpec
from hnas.export.device.errors import ExportError, one_line
from hnas.export.device.records import JSON
from hnas.export.graph.samples import Samples
from hnas.export.onnx.casts import write_types
from hnas.export.onnx.quantiser import QDQ, quantise_onnx
from hnas.export.onnx.registry import kept_registry
from hnas.export.onnx.source import OnnxSource
from hnas.export.onnx.splits import split_by_slices
from hnas.export.remote.quiet import quiet

if TYPE_CHECKING:
    import onnx

    from hnas.export.device.dynamic import DynamicSize
    from hnas.export.graph.program import Program

_QDQ_OPSET = 13  # the first opset with scales per channel
_MAKERS = ("torch", "onnxscript")
_TORCH_OPSETS = (18, 20)  # torch writes invalid graphs below opset 18


def write_program(
    program: Program, path: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], opset: int = 20
) -> None:
    """Write ``program`` to ``path`` in ``opset`` (17 to 20), with the names of ``inputs`` and ``outputs``.

    Opset 17 is torch's opset 18, converted down by ONNX's own converter and checked.

    Raises:
        ExportError: the graph has no form in this opset; the message says why.
    """
    import torch

    from hnas.export.graph.dynamic import example_call
    from hnas.export.onnx.fixes import flatten_attention, part_pads

    program = flatten_attention(part_pads(program))
    examples, shapes = example_call(program)
    with quiet(), kept_registry():
        try:
            exported = torch.onnx.export(
                torch.export.export(program.module, examples, dynamic_shapes=shapes, strict=False),
                examples,
                dynamo=True,
                opset_version=max(opset, _TORCH_OPSETS[0]),
                input_names=[tensor.name for tensor in inputs],
                output_names=[tensor.name for tensor in outputs],
                verbose=False,
                external_data=False,
            )
        except torch.onnx.OnnxExporterError as error:
            cause: BaseException = error  # the outer errors name no operator
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise ExportError(f"torch.onnx cannot export this graph at opset {opset}: {one_line(cause)}") from error
    assert exported is not None
    _drop_origins(exported.model)
    exported.save(str(path))
    if program.dynamic is not None:
        _name_size(path, program.dynamic)
    if opset < _TORCH_OPSETS[0]:
        convert_opset(path, opset)


def _name_size(path: Path, size: DynamicSize) -> None:
    """Write the name of the open size into the inputs and outputs; torch numbers its sizes."""
    import onnx

    model = onnx.load(path)
    for values, axes in ((model.graph.input, size.inputs), (model.graph.output, size.outputs)):
        for value, axis in zip(values, axes, strict=True):
            if axis is not None:
                value.type.tensor_type.shape.dim[axis].dim_param = size.name
    del model.graph.value_info[:]  # these records have torch's names
    onnx.save(model, path)


def write_onnx(
    program: Program | OnnxSource,
    path: Path,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    *,
    oldest: int = 1,
    newest: int | None = None,
) -> None:
    """Write the file that a backend compiles to ``path``.

    program: a program, written in opset ``newest`` (None: 20); or the user's ONNX file, which is copied. If its opset
        is not from ``oldest`` to ``newest``, it is converted to the nearest of these.
    inputs, outputs: names, shapes and types, as the artifact records them.

    Raises:
        ExportError: the graph has no form in the opset.
    """
    if not isinstance(program, OnnxSource):
        write_program(program, path, inputs, outputs, newest or _TORCH_OPSETS[1])
        return
    own = int(program.notes["opset"].get("ai.onnx", oldest))
    opset = max(oldest, own if newest is None else min(own, newest))
    shutil.copyfile(program.path, path)
    if opset != own:
        convert_opset(path, opset)


def write_onnx_int8(
    program: Program | OnnxSource,
    path: Path,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    samples: Samples,
    policy: QDQ,
    newest: int | None = None,
    spare: Callable[[Path], Collection[str]] | None = None,
) -> dict[str, JSON]:
    """Write the file like ``write_onnx``, with explicit int8 under ``policy`` and ranges over ``samples``.

    ``spare``: returns nodes of the file that stay in float, see `quantise_onnx`.

    Returns the note "quantisation" of an artifact. "apart" is a record of each value whose parts are kept apart, see
    `hnas.export.int8.unlike`. Ranges are those of the program. If its values do not match those of the file, or if
    it is an ONNX file, they are found by the same method on the file.

    Raises:
        ExportError: as ``write_onnx``.
    """
    ranges, apart = None, list[JSON]()
    if not isinstance(program, OnnxSource):
        from hnas.export.int8.apart import keep_apart
        from hnas.export.int8.policy import with_one_scale

        edited, apart = keep_apart(program, samples)
        if not apart or _matches(edited, path, inputs, outputs, newest):
            program = edited
        else:  # float marks cannot be placed in the file
            apart = with_one_scale(apart, "the operators of the ONNX file do not match those of the network")
    source = path.with_name("float.onnx")
    write_onnx(program, source, inputs, outputs, oldest=_QDQ_OPSET, newest=newest)
    if policy.ranges != "minmax" and not isinstance(program, OnnxSource) and _has_values(source, program):
        from hnas.export.int8.calibration import activation_ranges

        ranges = activation_ranges(program, samples, policy.ranges)
    apart += quantise_onnx(source, path, samples, policy, program, ranges, spare)
    source.unlink()
    return {**policy.to_json(), "samples": len(samples), "apart": apart}


def _matches(
    program: Program, path: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], newest: int | None
) -> bool:
    """Return whether the values of the program can be found in its file."""
    source = path.with_name("matched.onnx")
    write_onnx(program, source, inputs, outputs, oldest=_QDQ_OPSET, newest=newest)
    found = _has_values(source, program)
    source.unlink()
    return found


def _has_values(source: Path, program: Program) -> bool:
    """Return whether the values of the program can be found in the file ``source``, which was made from it."""
    import onnx

    from hnas.export.onnx.names import onnx_values

    return bool(onnx_values(program, onnx.load(source).graph))


def convert_to_fp16(path: Path, kept: Collection[str]) -> None:
    """Write the types of fp16 into the fp32 file, see `write_types`. A quantised file must be of opset 19 or newer.

    Raises:
        ExportError: the typed file is not valid ONNX.
    """
    import onnx
    from onnx import checker, shape_inference

    model = write_types(onnx.load(path), kept)
    try:
        checker.check_model(model, full_check=True)
    except (checker.ValidationError, shape_inference.InferenceError) as error:
        raise ExportError(f"the types of fp16 do not fit this graph: {one_line(error)}; choose fp32") from error
    onnx.save(model, path)


def writer_versions(program: Program | OnnxSource) -> dict[str, str]:
    """Return the versions of the packages that write the file."""
    return {name: version(name) for name in (*(() if isinstance(program, OnnxSource) else _MAKERS), "onnx")}


def read_opset(path: Path) -> int:
    """Return the opset of the file."""
    import onnx

    return max((each.version for each in onnx.load(path).opset_import if each.domain in ("", "ai.onnx")), default=0)


def _drop_origins(model: Any) -> None:
    """Remove source-code positions from all nodes, because they are private and differ between runs."""
    model.metadata_props.clear()
    for graph in (model.graph, *model.functions.values()):
        graph.metadata_props.clear()
        for node in graph.all_nodes():
            for part in (node, *node.outputs):
                part.metadata_props.clear()
        for value in (*graph.inputs, *getattr(graph, "initializers", {}).values()):
            value.metadata_props.clear()


def convert_opset(path: Path, opset: int) -> None:
    """Convert the file to another opset with ONNX's converter, and check it."""
    import onnx
    from onnx import checker, version_converter

    model = onnx.load(path)
    for node in model.graph.node:
        _drop_default(node)
    split_by_slices(model)
    try:
        model = version_converter.convert_version(model, opset)
        checker.check_model(model, full_check=True)
    except (RuntimeError, checker.ValidationError) as error:
        raise ExportError(f"this graph cannot be converted to ONNX opset {opset}: {one_line(error)}") from error
    onnx.save(model, path)


def _drop_default(node: onnx.NodeProto) -> None:
    """Remove an attribute of reductions that opset 17 does not have, where it holds its default."""
    for attribute in list(node.attribute):
        if attribute.name == "noop_with_empty_axes" and attribute.i == 0:
            node.attribute.remove(attribute)
