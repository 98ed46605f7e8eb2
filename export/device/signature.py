"""What goes into an artifact and what comes out: written down when it is compiled, held against every call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Sequence

import numpy as np

from hnas.export.device.artifact import Tensor
from hnas.export.device.errors import ExportError

if TYPE_CHECKING:
    from numpy.typing import NDArray  # younger than the numpy of some devices


def fit(inputs: Sequence[NDArray[Any]], tensors: Sequence[Tensor]) -> tuple[NDArray[Any], ...]:
    """``inputs`` as contiguous arrays; ValueError in one line unless they are what ``tensors`` say.

    No tensors means that only the runtime knows (a bare model file): it gets whatever is given.
    """
    wanted = [(tensor.shape, tensor.dtype) for tensor in tensors]
    given = [(value.shape, str(value.dtype)) for value in inputs]
    if wanted and wanted != given:
        raise ValueError(f"inputs are {_words(given)}, the artifact takes {_words(wanted)}")
    return tuple(np.ascontiguousarray(value) for value in inputs)


def hold(outputs: Sequence[NDArray[Any]], tensors: Sequence[Tensor]) -> tuple[NDArray[Any], ...]:
    """``outputs``; ExportError in one line unless they are what ``tensors`` say. No tensors: whatever they are."""
    stated = [(tensor.shape, tensor.dtype) for tensor in tensors]
    given = [(value.shape, str(value.dtype)) for value in outputs]
    if stated and stated != given:
        raise ExportError(f"the outputs are {_words(given)}, the artifact states {_words(stated)}")
    return tuple(outputs)


def _words(values: Sequence[tuple[tuple[int, ...], str]]) -> str:
    return ", ".join(f"{dtype}{list(shape)}" for shape, dtype in values) or "none"
