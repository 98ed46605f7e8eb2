"""Read an ONNX file, and refuse it if no artifact can be made from it: ``file = read_onnx(path)``.

The file is not trusted. Its sizes are checked against its bytes, and nothing outside its folder is opened.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from hnas.export.device.artifact import check_name, digest_file
from hnas.export.device.errors import one_line
from hnas.export.device.records import JSON
from hnas.export.onnx.walk import constants, graphs, nodes, shown

if TYPE_CHECKING:
    import onnx

LARGEST = 2**31 - 1  # bytes of a protobuf message
_QUANTISED = frozenset(
    [
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"),
        *("QLinearConv", "QLinearMatMul", "MatMulNBits"),
    ]
)
_RANDOM = frozenset(
    ["RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"]
)
_LAYERS = frozenset(  # an infinite weight of these layers is an error; a mask may hold infinities
    [
        *("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"),
        *("BatchNormalization", "LayerNormalization", "InstanceNormalization", "GroupNormalization"),
    ]
)


@dataclass
class OnnxFile:
    """Hold an ONNX file during its checks.

    name: the file name, without its folder.
    data: the bytes of the original.
    model: the parsed model, including the changes so far.
    notes: the origin of the file, for an artifact's notes.
    changes: one phrase for each difference between ``model`` and ``data``.
    stated: the sizes of inputs and outputs in ``data``, by name; a symbolic size is its name, None an open rank.
    """

    name: str
    data: bytes
    model: onnx.ModelProto
    notes: dict[str, JSON]
    changes: list[str] = field(default_factory=list)
    stated: dict[str, list[int | str] | None] = field(default_factory=dict)


def read_onnx(path: Path) -> OnnxFile:
    """Read and check an ONNX file; include external weights, inline functions, and drop inputs that are weights.

    Raises:
        ValueError: one line, in these cases:

    1. More than 2 GB with its weights, not an ONNX file, truncated, or refused by ONNX's own checker.
    2. A weight outside the file's folder, or whose bytes do not match its sizes.
    3. An operator that the file's opset does not have; operators of other domains are left to the runtimes.
    4. A file that is quantised already, or that draws random numbers, so that no artifact can be compared with it.
    5. NaN in a constant, or infinity in a weight of a layer.
    6. A name that cannot be printed: messages repeat names, and a terminal executes control characters in them.
    """
    import onnx
    from onnx.inliner import inline_local_functions

    file = _parse(path)
    _check_operators(file)
    _check_names(file)
    if file.model.functions:
        file.model = inline_local_functions(file.model)
        file.changes.append("its functions are inlined")
    _include_weights(file, path.parent)
    try:
        onnx.checker.check_model(file.model)  # case 1
    except Exception as error:  # the checker's error class is not a Python class
        raise ValueError(f"{path.name} is not a valid ONNX file: {one_line(error)}") from error
    _drop_weight_inputs(file)
    _check_constants(file)
    _note_origin(file)
    return file


def _parse(path: Path) -> OnnxFile:
    """Case 1 of ``read_onnx``, before any other check."""
    import onnx

    size = path.stat().st_size
    if size > LARGEST:
        raise ValueError(
            f"{path.name} has {size} bytes; an ONNX file has at most {LARGEST}, with larger weights in files beside it"
        )
    data = path.read_bytes()
    broken = f"{path.name} is not an ONNX file, or is truncated ({size} bytes)"
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # each version of the parser has another error class
        raise ValueError(broken) from error
    if not model.HasField("graph") or not model.graph.node:
        raise ValueError(f"{broken}: it has no graph")
    notes = {"format": "onnx", "file": path.name, "sha256": hashlib.sha256(data).hexdigest()}
    return OnnxFile(path.name, data, model, notes)


def _check_operators(file: OnnxFile) -> None:
    """Cases 3 and 4 of ``read_onnx``."""
    functions = {(function.domain, function.name) for function in file.model.functions}
    used = [node for node in nodes(file.model) if (node.domain, node.op_type) not in functions]
    _check_opset(file, {node.op_type for node in used if _domain(node.domain) == ""})
    counts = Counter(node.op_type for node in used)
    if found := {name: counts[name] for name in sorted(_QUANTISED & set(counts))}:
        said = ", ".join(f"{count} {name}" for name, count in found.items())
        raise ValueError(f"{file.name} is already quantised ({said}); give the float file that it was made from")
    if drawing := sorted(_RANDOM & set(counts)):
        raise ValueError(
            f"{file.name} draws random numbers ({', '.join(drawing)}): no artifact can be compared with it"
        )


def _check_opset(file: OnnxFile, names: set[str]) -> None:
    """Case 3 of ``read_onnx``, for ``names`` of ONNX's own operators."""
    import onnx

    opset = {_domain(each.domain): each.version for each in file.model.opset_import}.get("", 1)
    unknown = sorted(name for name in names if not _has_operator(opset, name))
    if unknown:
        listed = ", ".join(map(shown, unknown[:5]))
        newest = onnx.defs.onnx_opset_version()
        raise ValueError(f"{file.name} uses {listed}, which ONNX opset {opset} does not have (newest: {newest})")


def _has_operator(opset: int, name: str) -> bool:
    import onnx

    try:
        schema = onnx.defs.get_schema(name, opset, "")
    except (onnx.defs.SchemaError, TypeError):  # TypeError: an opset of more than 32 bits
        return False
    return not schema.deprecated


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _check_names(file: OnnxFile) -> None:
    """Case 6 of ``read_onnx``, for nodes and their outputs. `hnas.export.onnx.sizes` checks the names of inputs."""
    names = [name for node in nodes(file.model) for name in (node.name, node.op_type, node.domain, *node.output)]
    if odd := next((name for name in names if not name.isprintable()), None):
        raise ValueError(f"{file.name} has a name that cannot be printed, {shown(odd)}; rename it")


def _include_weights(file: OnnxFile, folder: Path) -> None:
    """Case 2 of ``read_onnx``: copy weights from files in ``folder`` into the model."""
    from onnx import TensorProto

    digests: dict[str, str] = {}
    total = file.model.ByteSize()
    for tensor in constants(file.model.graph):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        location, start, length = _external_bytes(file, tensor, folder, digests)
        total += length
        if total > LARGEST:
            raise ValueError(f"{file.name} has more than 2 GB with its weights; artifacts are smaller")
        with (folder / location).open("rb") as stream:
            stream.seek(start)
            tensor.raw_data = stream.read(length)
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]
    if digests:
        file.notes["weights"] = digests
        file.changes.append("its weights are in the file")


def _external_bytes(
    file: OnnxFile, tensor: onnx.TensorProto, folder: Path, digests: dict[str, str]
) -> tuple[str, int, int]:
    """Return (file name, first byte, length) of an external weight, and add the file's digest to ``digests``."""
    entries: Mapping[str, str] = {entry.key: entry.value for entry in tensor.external_data}
    location = str(PurePosixPath(entries.get("location", "")))
    weight = f"weight {shown(tensor.name)} of {file.name}"
    try:
        check_name(location)
        digests[location] = digests.get(location) or digest_file(folder, location)
        size = (folder / location).stat().st_size
        start = int(entries.get("offset", 0))
        length = int(entries.get("length", size - start))
    except ValueError as error:
        reason = one_line(error).removeprefix("ValueError: ")
        raise ValueError(f"{weight} cannot be read from the file's folder: {reason}") from error
    if not 0 <= start <= start + length <= size:
        raise ValueError(f"{weight} claims bytes {start} to {start + length} of {location}, which has {size}")
    return location, start, length


def _drop_weight_inputs(file: OnnxFile) -> None:
    """Remove inputs that are weights (always listed before IR version 4): runtimes fold only constants."""
    graph = file.model.graph
    listed = {tensor.name for tensor in graph.initializer} | {each.values.name for each in graph.sparse_initializer}
    kept = [value for value in graph.input if value.name not in listed]
    if len(kept) < len(graph.input):
        del graph.input[:]
        graph.input.extend(kept)
        file.model.ir_version = max(4, file.model.ir_version)
        file.changes.append("its weights are no longer inputs")


def _check_constants(file: OnnxFile) -> None:
    """Cases 2 and 5 of ``read_onnx``."""
    import onnx

    kinds = onnx.TensorProto
    floating = (kinds.FLOAT, kinds.DOUBLE, kinds.FLOAT16, kinds.BFLOAT16)
    weights = {
        name
        for graph in graphs(file.model.graph)
        for node in graph.node
        if node.op_type in _LAYERS
        for name in node.input
        if name  # an omitted input has the empty name, and so have many constants
    }
    for tensor in constants(file.model.graph):
        called = f"constant {shown(tensor.name)} of {file.name}"
        try:
            values = onnx.numpy_helper.to_array(tensor)
        except Exception as error:
            raise ValueError(f"{called} has bytes that do not match its sizes {list(tensor.dims)}") from error
        if tensor.data_type not in floating:
            continue
        values = values if values.dtype.kind == "f" else values.astype(np.float32)
        if np.isnan(values).any():
            raise ValueError(f"{called} holds NaN; train or load the weights again")
        if tensor.name in weights and not np.isfinite(values).all():
            raise ValueError(f"{called} holds infinity; train or load the weights again")


def _note_origin(file: OnnxFile) -> None:
    """Add opset, IR version and producer to the notes."""
    model = file.model
    file.notes["opset"] = {shown(each.domain or "ai.onnx"): each.version for each in model.opset_import}
    file.notes["ir_version"] = model.ir_version
    file.notes["producer"] = shown(f"{model.producer_name} {model.producer_version}".strip())
