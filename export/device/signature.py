"""Check the inputs and outputs of a call against what the artifact states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Sequence

import numpy as np

from hnas.export.device.artifact import TensorSpec
from hnas.export.device.errors import ExportError

if TYPE_CHECKING:
    from numpy.typing import NDArray  # younger than the numpy of some devices


def check_inputs(inputs: Sequence[NDArray[Any]], tensors: Sequence[TensorSpec]) -> tuple[NDArray[Any], ...]:
    """Return ``inputs`` as contiguous arrays. Raise ValueError unless their shapes and types are those of ``tensors``.

    Without ``tensors`` (a bare model file) nothing is checked: only the runtime knows the inputs.
    """
    wanted = [(tensor.shape, tensor.dtype) for tensor in tensors]
    given = [(value.shape, str(value.dtype)) for value in inputs]
    if wanted and wanted != given:
        raise ValueError(f"inputs are {_words(given)}, the artifact takes {_words(wanted)}")
    return tuple(np.ascontiguousarray(value) for value in inputs)


def check_outputs(outputs: Sequence[NDArray[Any]], tensors: Sequence[TensorSpec]) -> tuple[NDArray[Any], ...]:
    """Return ``outputs``. Raise ExportError unless their shapes and types are those of ``tensors``, if any."""
    stated = [(tensor.shape, tensor.dtype) for tensor in tensors]
    given = [(value.shape, str(value.dtype)) for value in outputs]
    if stated and stated != given:
        raise ExportError(f"the outputs are {_words(given)}, the artifact states {_words(stated)}")
    return tuple(outputs)


def _words(values: Sequence[tuple[tuple[int, ...], str]]) -> str:
    return ", ".join(f"{dtype}{list(shape)}" for shape, dtype in values) or "none"
