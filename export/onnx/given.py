"""Put the example inputs of an ONNX file in its order and its types: ``arrange(file, arrays, names)``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from hnas.export.graph.samples import Sample, in_types
from hnas.export.onnx.walk import shown

if TYPE_CHECKING:
    from hnas.export.onnx.checks import OnnxFile

T = TypeVar("T")


def arrange(file: OnnxFile, arrays: Sample, names: Sequence[str] | None) -> Sample:
    """Return the inputs in the order of the file. Floats, and integers where no value can change, get its types.

    names: the name of each array; None: they are in the order of the file.

    Raises:
        ValueError: a name is unknown or missing.
    """
    import onnx

    arrays = tuple(in_order(file, arrays, names))
    kinds = [value.type.tensor_type.elem_type for value in file.model.graph.input]
    try:
        return in_types(arrays, [onnx.helper.tensor_dtype_to_np_dtype(kind) for kind in kinds])
    except (KeyError, ValueError):  # the next check refuses this type with the name of the input
        return arrays


def in_order(file: OnnxFile, values: Sequence[T], names: Sequence[str] | None) -> Sequence[T]:
    """Return one value for each input in the order of the file, from values with ``names``.

    Raises:
        ValueError: a name is unknown or missing.
    """
    if names is None:
        return values
    taken = [value.name for value in file.model.graph.input]
    takes = f"it takes {', '.join(map(shown, taken))}"
    if unknown := sorted(set(names) - set(taken)):
        raise ValueError(f"{file.name} has no input {', '.join(map(shown, unknown))}; {takes}")
    if missing := sorted(set(taken) - set(names)):
        listed = ", ".join(map(shown, missing))
        raise ValueError(f"{file.name} has an input {listed}, which the example inputs lack; {takes}")
    given = dict(zip(names, values, strict=True))
    return [given[name] for name in taken]
