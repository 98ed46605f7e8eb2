"""What an ONNX file must be before anything is made of it: whole, float, of known operators and fixed sizes, no NaN.

A file from elsewhere is hostile: its sizes are held against its bytes, and nothing outside of its folder is opened.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from hnas.export.device.artifact import Tensor, check_name, digest_file
from hnas.export.device.errors import one_line
from hnas.export.device.records import JSON

if TYPE_CHECKING:
    import onnx

Sizes: TypeAlias = list[int | str] | None  # what is open has a name; None: not even the rank is stated
Given: TypeAlias = tuple[tuple[int, ...], str]  # shape and dtype of an example; no dtype: whatever the file takes

LARGEST = 2**31 - 1  # bytes of a protobuf message
QUANTISED = frozenset(
    [
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"),
        *("QLinearConv", "QLinearMatMul", "MatMulNBits"),
    ]
)
_RANDOM = frozenset(
    ["RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"]
)
LAYERS = frozenset(  # an infinite weight of theirs is a fault, while a mask may hold infinities
    [
        *("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"),
        *("BatchNormalization", "LayerNormalization", "InstanceNormalization", "GroupNormalization"),
    ]
)


@dataclass
class File:
    """A file while it is being checked: its ``data`` and what was parsed and cleaned.

    ``changes`` say what the latter has otherwise, ``notes`` where it came from.
    """

    name: str
    data: bytes
    model: onnx.ModelProto
    notes: dict[str, JSON]
    changes: list[str] = field(default_factory=list)


def read(path: Path) -> File:
    """The file with all of its weights in it, its functions written out, its weights no inputs.

    ValueError in one line:
    1. More than 2 GB with its weights, no ONNX, cut off, or refused by ONNX's own checker.
    2. A weight outside of the file's folder, or of other bytes than its sizes say.
    3. An operator that ONNX does not have in the file's opset; those of other domains are the runtimes' business.
    4. Quantised already, or drawing random numbers, so that no artifact can be held against it.
    5. NaN in a constant, infinity in a weight of a layer.
    6. A name that cannot be printed: runtimes repeat names, and a terminal obeys what is in them.
    """
    import onnx
    from onnx.inliner import inline_local_functions

    size = path.stat().st_size
    if size > LARGEST:
        raise ValueError(f"{path.name} has {size} bytes; an ONNX file has at most {LARGEST}, the rest lies beside it")
    data = path.read_bytes()
    broken = f"{path.name} is no ONNX file, or was cut off ({size} bytes)"
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # the parser's own type is another in each of its versions
        raise ValueError(broken) from error
    if not model.HasField("graph") or not model.graph.node:
        raise ValueError(f"{broken}: there is no graph in it")
    notes = {"format": "onnx", "file": path.name, "sha256": hashlib.sha256(data).hexdigest()}
    file = File(path.name, data, model, notes)
    _check_operators(file)
    _check_names(file)
    if model.functions:
        file.model = inline_local_functions(model)
        file.changes.append("its functions are written out")
    _take_in(file, path.parent)
    try:
        onnx.checker.check_model(file.model)
    except Exception as error:  # the checker's own type is no class of Python's
        raise ValueError(f"{path.name} is no valid ONNX file: {one_line(error)}") from error
    _drop_defaults(file)
    _check_constants(file)
    _describe(file)
    return file


def fix_inputs(file: File, given: Sequence[Given] | None) -> tuple[Tensor, ...]:
    """The inputs of the graph; open sizes become those of ``given``, which must fit the rest.

    ValueError for an input that is no tensor of numbers, and for open sizes where nothing is given.
    """
    values = file.model.graph.input
    if not values:
        raise ValueError(f"{file.name} takes no inputs: it computes a constant")
    stated = [(_sizes(value), _tensor(file, value, ()).dtype) for value in values]
    takes = ", ".join(
        f"{_shown(v.name)} {dtype}{_words(sizes)}" for v, (sizes, dtype) in zip(values, stated, strict=True)
    )
    if given is None:
        if any(_open(sizes) for sizes, _ in stated):
            mend = "give example inputs that fix them (--input 1x3x224x224 on the command line)"
            raise ValueError(f"{file.name} takes {takes}, of open sizes; {mend}")
        given = [(tuple(map(int, sizes or ())), dtype) for sizes, dtype in stated]
    if len(given) != len(stated) or not all(map(_fits, given, stated)):
        said = ", ".join(f"{dtype}{list(shape)}" for shape, dtype in given)
        raise ValueError(f"{file.name} takes {takes}; the example inputs are {said}")
    for value, (shape, _), (sizes, _) in zip(values, given, stated, strict=True):
        if _open(sizes):
            _set_sizes(value, shape)
            file.changes.append(f"{_shown(value.name)} has the fixed sizes {list(shape)}")
    if any(_open(sizes) for sizes, _ in stated):
        del file.model.graph.value_info[:]  # they repeat the open sizes
    return tuple(_tensor(file, value, shape) for value, (shape, _) in zip(values, given, strict=True))


def fix_outputs(file: File, outputs: Sequence[Tensor]) -> bool:
    """Write the shapes that were seen into the graph's outputs where it states others; whether it did anywhere."""
    changes = len(file.changes)
    for value, seen in zip(file.model.graph.output, outputs, strict=True):
        if _sizes(value) != list(seen.shape):
            _set_sizes(value, seen.shape)
            file.changes.append(f"{_shown(value.name)} has the fixed sizes {list(seen.shape)}")
    return len(file.changes) > changes


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and those within its nodes: branches and bodies of loops."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                yield from graphs(inner)


def constants(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every constant of a graph and of those within it."""
    for each in graphs(graph):
        sparse = [*each.sparse_initializer]
        yield from each.initializer
        for node in each.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                if attribute.HasField("sparse_tensor"):
                    sparse.append(attribute.sparse_tensor)
                yield from attribute.tensors
                sparse += attribute.sparse_tensors
        for part in sparse:
            yield part.values
            yield part.indices


def _check_operators(file: File) -> None:
    """Cases 3 and 4 of ``read``."""
    import onnx

    own = {(function.domain, function.name) for function in file.model.functions}
    nodes = [node for graph in graphs(file.model.graph) for node in graph.node]
    nodes += [node for function in file.model.functions for node in function.node]
    counts = Counter(node.op_type for node in nodes if (node.domain, node.op_type) not in own)
    versions = {_domain(each.domain): each.version for each in file.model.opset_import}
    kinds = {(_domain(node.domain), node.op_type) for node in nodes if (node.domain, node.op_type) not in own}
    unknown = sorted(name for domain, name in kinds if domain == "" and not _known(name, versions.get("", 1)))
    if unknown:
        names = ", ".join(map(_shown, unknown[:5]))
        newest = onnx.defs.onnx_opset_version()
        raise ValueError(
            f"{file.name} uses {names}, which ONNX opset {versions.get('', 1)} does not have (newest: {newest})"
        )
    if found := {name: counts[name] for name in sorted(QUANTISED & set(counts))}:
        said = ", ".join(f"{count} {name}" for name, count in found.items())
        raise ValueError(f"{file.name} is quantised already ({said}); give the float file that it was made from")
    if drawing := sorted(_RANDOM & set(counts)):
        raise ValueError(f"{file.name} draws random numbers ({', '.join(drawing)}): no artifact can be held against it")


def _check_names(file: File) -> None:
    """Case 6 of ``read``; a weight's name is that of somebody's input, an input has an error of its own."""
    model = file.model
    nodes = [node for graph in graphs(model.graph) for node in graph.node]
    nodes += [node for function in model.functions for node in function.node]
    names = [name for node in nodes for name in (node.name, node.op_type, node.domain, *node.output)]
    if odd := next((name for name in names if not name.isprintable()), None):
        raise ValueError(f"{file.name} has a name that cannot be printed, {_shown(odd)}; give it another")


def _known(name: str, version: int) -> bool:
    import onnx

    try:
        schema = onnx.defs.get_schema(name, version, "")
    except (onnx.defs.SchemaError, TypeError):  # the latter: an opset of more than 32 bits
        return False
    return not schema.deprecated


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _take_in(file: File, folder: Path) -> None:
    """Case 2 of ``read``: weights that lie beside the file, each within the file that it names, in ``folder``."""
    from onnx import TensorProto

    digests: dict[str, str] = {}
    total = file.model.ByteSize()
    for tensor in constants(file.model.graph):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = str(PurePosixPath(entries.get("location", "")))
        weight = f"weight {_shown(tensor.name)} of {file.name}"
        try:
            check_name(location)
            digests[location] = digests.get(location) or digest_file(folder, location)
            size = (folder / location).stat().st_size
            start = int(entries.get("offset", 0))
            length = int(entries.get("length", size - start))
        except ValueError as error:
            raise ValueError(
                f"{weight} does not lie beside it: {one_line(error).removeprefix('ValueError: ')}"
            ) from error
        if not 0 <= start <= start + length <= size:
            raise ValueError(
                f"{weight} is said to lie at byte {start} to {start + length} of {location}, which has {size}"
            )
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


def _drop_defaults(file: File) -> None:
    """Weights that are inputs as well, as all were before IR version 4, are constants: runtimes fold only those."""
    graph = file.model.graph
    listed = {tensor.name for tensor in graph.initializer} | {each.values.name for each in graph.sparse_initializer}
    kept = [value for value in graph.input if value.name not in listed]
    if len(kept) < len(graph.input):
        del graph.input[:]
        graph.input.extend(kept)
        file.model.ir_version = max(4, file.model.ir_version)
        file.changes.append("its weights are no inputs")


def _check_constants(file: File) -> None:
    """Cases 2 and 5 of ``read``."""
    import onnx

    kinds = onnx.TensorProto
    floating = (kinds.FLOAT, kinds.DOUBLE, kinds.FLOAT16, kinds.BFLOAT16)
    weights = {
        name
        for g in graphs(file.model.graph)
        for node in g.node
        if node.op_type in LAYERS
        for name in node.input
        if name  # an input that is left out has none, and neither have many constants
    }
    for tensor in constants(file.model.graph):
        called = f"constant {_shown(tensor.name)} of {file.name}"
        try:
            values = onnx.numpy_helper.to_array(tensor)
        except Exception as error:
            raise ValueError(f"{called} has other bytes than its sizes {list(tensor.dims)} say") from error
        if tensor.data_type not in floating:
            continue
        values = values if values.dtype.kind == "f" else values.astype(np.float32)
        if np.isnan(values).any():
            raise ValueError(f"{called} holds NaN; train or load the weights again")
        if tensor.name in weights and not np.isfinite(values).all():
            raise ValueError(f"{called} holds infinity; train or load the weights again")


def _describe(file: File) -> None:
    """What the file says of itself, for an artifact's notes."""
    model = file.model
    file.notes["opset"] = {_shown(each.domain or "ai.onnx"): each.version for each in model.opset_import}
    file.notes["ir_version"] = model.ir_version
    file.notes["producer"] = _shown(f"{model.producer_name} {model.producer_version}".strip())


def _tensor(file: File, value: onnx.ValueInfoProto, shape: tuple[int, ...]) -> Tensor:
    """An input as an artifact states it; ValueError for anything but a tensor of numbers."""
    import onnx

    called, kind = f"input {_shown(value.name)} of {file.name}", value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise ValueError(f"{called} is a {str(kind).removesuffix('_type')}; an artifact takes tensors of numbers")
    if not value.name.isprintable():
        raise ValueError(f"{called} has a name that cannot be printed; give it another")
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        return Tensor(value.name, shape, str(dtype))
    except (ValueError, KeyError) as error:
        raise ValueError(f"{called}: {one_line(error).partition(': ')[2]}") from error


def _sizes(value: onnx.ValueInfoProto) -> Sizes:
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    return [dim.dim_value if dim.dim_value > 0 else _shown(dim.dim_param) or "?" for dim in kind.shape.dim]


def _open(sizes: Sizes) -> bool:
    return sizes is None or any(isinstance(size, str) for size in sizes)


def _set_sizes(value: onnx.ValueInfoProto, shape: Sequence[int]) -> None:
    kind = value.type.tensor_type
    kind.ClearField("shape")
    kind.shape.SetInParent()  # a scalar has a shape, too
    for size in shape:
        kind.shape.dim.add().dim_value = size


def _fits(given: Given, stated: tuple[Sizes, str]) -> bool:
    (shape, dtype), (sizes, wanted) = given, stated
    if dtype not in ("", wanted):
        return False
    return sizes is None or (
        len(shape) == len(sizes) and all(isinstance(a, str) or a == b for a, b in zip(sizes, shape, strict=True))
    )


def _words(sizes: Sizes) -> str:
    return "[...]" if sizes is None else f"[{', '.join(map(str, sizes))}]"


def _shown(name: str) -> str:
    """A name from the file, fit for one line."""
    plain = name if name.isprintable() else ascii(name)
    return plain if len(plain) <= 60 else plain[:57] + "..."
