"""Put the example inputs of an ONNX file in its order and its types: ``arrange(file, arrays, names)``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hnas.export.graph.samples import Sample, in_types
from hnas.export.onnx.walk import shown

if TYPE_CHECKING:
    from hnas.export.onnx.checks import OnnxFile


def arrange(file: OnnxFile, arrays: Sample, names: Sequence[str] | None) -> Sample:
    """Return the inputs in the order of the file. Floats, and integers where no value can change, get its types.

    names: the name of each array; None: they are in the order of the file.

    Raises:
        ValueError: a name is unknown or missing.
    """
    import onnx

    values = file.model.graph.input
    if names is not None:
        taken = [value.name for value in values]
        for word, odd in (("no input", set(names) - set(taken)), ("an input", set(taken) - set(names))):
            if odd:
                lacks = "" if word == "no input" else ", which the example inputs lack"
                listed = f"{', '.join(map(shown, sorted(odd)))}{lacks}"
                raise ValueError(f"{file.name} has {word} {listed}; it takes {', '.join(map(shown, taken))}")
        given = dict(zip(names, arrays, strict=True))
        arrays = tuple(given[name] for name in taken)
    try:
        dtypes = [onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type) for value in values]
    except (KeyError, ValueError):  # refused with its name by the next check
        return arrays
    return in_types(arrays, dtypes)
