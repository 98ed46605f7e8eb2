"""Fix the dynamic sizes of an ONNX file's inputs and outputs: ``fix_inputs(file, shapes)``, then ``fix_outputs``.

`hnas.export.onnx.opening` opens one of them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

from hnas.export.device.artifact import TensorSpec
from hnas.export.device.errors import one_line
from hnas.export.graph.sizes import Asked, smallest
from hnas.export.onnx.walk import shown

if TYPE_CHECKING:
    import onnx

    from hnas.export.device.dynamic import DynamicSize
    from hnas.export.onnx.checks import OnnxFile

_Sizes: TypeAlias = list[int | str] | None  # a dynamic size is its name; None: the rank is dynamic too
_Stated: TypeAlias = tuple[_Sizes, str]  # sizes and dtype as the file states them
ShapeAndType: TypeAlias = tuple[tuple[int, ...], str]  # of an example input; "" accepts the file's own dtype


def fix_inputs(
    file: OnnxFile, given: Sequence[ShapeAndType] | None, asked: Asked | None = None
) -> tuple[TensorSpec, ...]:
    """Replace dynamic input sizes by those of ``given``, and return the specs of the inputs.

    given: shape and dtype of each example input; None where all sizes are static.
    asked: the option ``dynamic``, which gives a size where ``given`` is None.

    Raises:
        ValueError: an input is not a tensor of numbers, ``given`` does not fit the file, or a size is dynamic and
            nothing is given.
    """
    values = file.model.graph.input
    if not values:
        raise ValueError(f"{file.name} takes no inputs: it computes a constant")
    file.stated = {value.name: _sizes(value) for value in (*values, *file.model.graph.output)}
    stated = [(_sizes(value), _tensor(file, value, ()).dtype) for value in values]
    if given is None:
        given = _static(file, stated, asked or {})
    if len(given) != len(stated) or not all(map(_fits, given, stated)):
        said = ", ".join(f"{dtype}{list(shape)}" for shape, dtype in given)
        raise ValueError(f"{file.name} takes {_signature(file, stated)}; the example inputs are {said}")
    dynamic = [(value, shape) for value, (shape, _) in zip(values, given, strict=True) if not _is_static(file, value)]
    _write_sizes(file, dynamic, asked or {})
    return tuple(_tensor(file, value, shape) for value, (shape, _) in zip(values, given, strict=True))


def _write_sizes(file: OnnxFile, found: Sequence[tuple[onnx.ValueInfoProto, tuple[int, ...]]], asked: Asked) -> None:
    """Write sizes into the inputs that leave them open. Those of ``asked`` are no change: they are opened again."""
    for value, shape in found:
        _set_sizes(value, shape)
        if value.name not in asked:
            file.changes.append(f"{shown(value.name)} has the fixed sizes {list(shape)}")
    if found:
        del file.model.graph.value_info[:]  # these records repeat the dynamic sizes


def fix_outputs(file: OnnxFile, outputs: Sequence[TensorSpec]) -> bool:
    """Write the observed shapes into the graph's outputs if the file states others. Return whether any changed."""
    changes = len(file.changes)
    for value, seen in zip(file.model.graph.output, outputs, strict=True):
        if _sizes(value) != list(seen.shape):
            _set_sizes(value, seen.shape)
            file.changes.append(f"{shown(value.name)} has the fixed sizes {list(seen.shape)}")
    return len(file.changes) > changes


def open_axes(file: OnnxFile, specs: Sequence[TensorSpec], size: DynamicSize, side: Literal["input", "output"]) -> None:
    """Write the sizes of the inputs or the outputs, with the open size by its name, where the file states others."""
    axes = size.inputs if side == "input" else size.outputs
    for value, spec, axis in zip(getattr(file.model.graph, side), specs, axes, strict=True):
        wanted = [size.name if index == axis else each for index, each in enumerate(spec.shape)]
        _set_sizes(value, spec.shape, axis, size.name)
        if file.stated[value.name] != wanted:
            file.changes.append(f"{shown(value.name)} has the sizes {_listed(wanted)}")


def _static(file: OnnxFile, stated: Sequence[_Stated], asked: Asked) -> list[ShapeAndType]:
    """Return the stated shapes and types, ``asked`` sizes at their smallest. Raise ValueError for a dynamic size."""
    filled: list[_Stated] = []
    for value, (sizes, dtype) in zip(file.model.graph.input, stated, strict=True):
        known = [
            size if isinstance(size, int) else smallest(asked, value.name, axis) or size
            for axis, size in enumerate(sizes or ())
        ]
        filled.append((None if sizes is None else known, dtype))
    if any(_is_dynamic(sizes) for sizes, _ in filled):
        mend = "give example inputs that fix them (--input 1x3x224x224 on the command line)"
        raise ValueError(f"{file.name} takes {_signature(file, stated)}, with dynamic sizes; {mend}")
    return [(tuple(map(int, sizes or ())), dtype) for sizes, dtype in filled]


def _signature(file: OnnxFile, stated: Sequence[_Stated]) -> str:
    """Return the inputs for a message: x float32[N, 3, 8, 8], y int64[...]."""
    pairs = zip(file.model.graph.input, stated, strict=True)
    return ", ".join(f"{shown(value.name)} {dtype}{_listed(sizes)}" for value, (sizes, dtype) in pairs)


def _listed(sizes: _Sizes) -> str:
    return "[...]" if sizes is None else f"[{', '.join(map(str, sizes))}]"


def _tensor(file: OnnxFile, value: onnx.ValueInfoProto, shape: tuple[int, ...]) -> TensorSpec:
    """Return an input as an artifact records it; raise ValueError for anything but a tensor of numbers."""
    import onnx

    called, kind = f"input {shown(value.name)} of {file.name}", value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise ValueError(f"{called} is a {str(kind).removesuffix('_type')}; an artifact takes tensors of numbers")
    if not value.name.isprintable():
        raise ValueError(f"{called} has a name that cannot be printed; rename it")
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        return TensorSpec(value.name, shape, str(dtype))
    except (ValueError, KeyError) as error:
        raise ValueError(f"{called}: {one_line(error).partition(': ')[2]}") from error


def _sizes(value: onnx.ValueInfoProto) -> _Sizes:
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    return [dim.dim_value if dim.dim_value > 0 else shown(dim.dim_param) or "?" for dim in kind.shape.dim]


def _is_static(file: OnnxFile, value: onnx.ValueInfoProto) -> bool:
    return not _is_dynamic(file.stated[value.name])


def _is_dynamic(sizes: _Sizes) -> bool:
    return sizes is None or any(isinstance(size, str) for size in sizes)


def _set_sizes(value: onnx.ValueInfoProto, shape: Sequence[int], axis: int | None = None, name: str = "") -> None:
    """Write the sizes of a value; that of ``axis`` stays open and has the name ``name``."""
    kind = value.type.tensor_type
    kind.ClearField("shape")
    kind.shape.SetInParent()  # a scalar has a shape too
    for index, size in enumerate(shape):
        dim = kind.shape.dim.add()
        if index == axis:
            dim.dim_param = name
        else:
            dim.dim_value = size


def _fits(given: ShapeAndType, stated: _Stated) -> bool:
    (shape, dtype), (sizes, wanted) = given, stated
    if dtype not in ("", wanted):
        return False
    return sizes is None or (
        len(shape) == len(sizes) and all(isinstance(a, str) or a == b for a, b in zip(sizes, shape, strict=True))
    )
