"""Arrange, check and name the inputs and outputs of a call, by what the artifact states."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Iterator, Mapping, Sequence, Tuple

import numpy as np

from hnas.export.device.dynamic import DynamicSize, resized
from hnas.export.device.errors import ExportError

if TYPE_CHECKING:
    from numpy.typing import NDArray  # younger than the numpy of some devices

    from hnas.export.device.artifact import Artifact, TensorSpec


_DEEPEST = 8  # levels of objects that are searched for arrays


class NamedOutputs(Tuple[Any, ...]):
    """Hold the outputs of a call: a tuple that also takes a name, as in ``runner(x)["logits"]``.

    ``names``: the names of the outputs; empty for a bare model file.
    """

    names: Tuple[str, ...] = ()

    def __getitem__(self, key: Any) -> Any:
        """Return the output of a name, an index or a slice. Raise KeyError for an unknown name."""
        if not isinstance(key, str):
            return super().__getitem__(key)
        if key not in self.names:
            raise KeyError(f"no output {key!r}; known: {', '.join(self.names) or 'none, use its index'}")
        return super().__getitem__(self.names.index(key))


def name_outputs(artifact: Artifact, outputs: Sequence[NDArray[Any]]) -> NamedOutputs:
    """Return ``outputs`` in the types that the artifact states, with their names."""
    stated = artifact.outputs if len(artifact.outputs) == len(outputs) else ()
    if stated:
        outputs = [_as_stated(value, tensor.dtype) for value, tensor in zip(outputs, stated)]
    named = NamedOutputs(outputs)
    named.names = tuple(tensor.name for tensor in stated)
    return named


def read_inputs(
    artifact: Artifact, inputs: Sequence[Any], named: Mapping[str, Any] | None = None
) -> tuple[NDArray[Any], ...]:
    """Return the inputs of a call as contiguous arrays, in the order of the artifact.

    ``inputs``: in order. They may be nested, like the arguments of the module.
    ``named``: by name. A nested value fills the dotted names below its own: ``past={"key": x}`` is ``past.key``.

    Raises:
        ValueError: an input is missing, unknown or no array, or has another shape or type than the artifact takes.
    """
    values = order_inputs(artifact, inputs, named)
    for value in values:
        if not isinstance(value, np.ndarray):
            raise ValueError(f"inputs must be numpy arrays, got {type(value).__name__}; pass numpy.asarray(...)")
    return check_inputs(values, _specs(artifact, "inputs", [getattr(value, "shape", ()) for value in values]))


def order_inputs(artifact: Artifact, inputs: Sequence[Any], named: Mapping[str, Any] | None = None) -> list[Any]:
    """Return the inputs of a call in the order of the artifact, unchecked. The parameters are those of `read_inputs`.

    Raises:
        ValueError: a name is missing or unknown.
    """
    values = [value for _, value in leaves(inputs)]
    if named:
        values += _by_name(artifact.inputs[len(values) :], named, bool(artifact.inputs))
    return values


def expected_outputs(artifact: Artifact, inputs: Sequence[NDArray[Any]]) -> Sequence[TensorSpec]:
    """Return the specs of the outputs for the sizes of ``inputs``."""
    return _specs(artifact, "outputs", [value.shape for value in inputs])


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values inside of containers, each with its dotted name: ``past.0.key``. See ``children``."""
    parts = children(value)
    if parts is None:
        yield name, value
        return
    for key, part in parts:
        yield from leaves(part, f"{name}.{key}" if name else str(key))


def children(value: Any) -> list[tuple[str, Any]] | None:
    """Return the keys and the values that a container holds, or None for any other value.

    Containers are dicts, tuples, lists, dataclasses, and other objects with arrays among their attributes.
    """
    return _children(value, ())


def attributes(value: Any) -> list[tuple[str, Any]]:
    """Return the attributes of an object that hold arrays, such as the layers of a cache; none if it is an array."""
    return _attributes(value, ())


def _children(value: Any, above: tuple[int, ...]) -> list[tuple[str, Any]] | None:
    if isinstance(value, Mapping):
        return [(str(key), part) for key, part in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value))
    if isinstance(value, (tuple, list)):
        return [(str(index), part) for index, part in enumerate(value)]
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    return _attributes(value, above) or None


def _attributes(value: Any, above: tuple[int, ...]) -> list[tuple[str, Any]]:
    if not hasattr(value, "__dict__") or _is_array(value) or callable(value) or id(value) in above:
        return []
    return [(name, part) for name, part in vars(value).items() if _holds_arrays(part, (*above, id(value)))]


def _holds_arrays(value: Any, above: tuple[int, ...]) -> bool:
    if _is_array(value):
        return True
    if isinstance(value, (str, bytes, int, float)) or value is None or id(value) in above or len(above) > _DEEPEST:
        return False
    parts = _children(value, above)
    return parts is not None and any(_holds_arrays(part, (*above, id(value))) for _, part in parts)


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def check_inputs(inputs: Sequence[NDArray[Any]], tensors: Sequence[TensorSpec]) -> tuple[NDArray[Any], ...]:
    """Return ``inputs`` as contiguous arrays. Raise ValueError unless their shapes and types are those of ``tensors``.

    Without ``tensors`` (a bare model file) nothing is checked: only the runtime knows the inputs.
    """
    wanted = [(tensor.shape, tensor.dtype) for tensor in tensors]
    given = [(value.shape, str(value.dtype)) for value in inputs]
    if wanted and wanted != given:
        raise ValueError(f"inputs are {_words(given)}, the artifact takes {_words(wanted)}")
    return tuple(np.ascontiguousarray(value).reshape(value.shape) for value in inputs)  # a scalar stays a scalar


def check_outputs(outputs: Sequence[NDArray[Any]], tensors: Sequence[TensorSpec]) -> tuple[NDArray[Any], ...]:
    """Return ``outputs``. Raise ExportError unless their shapes and types are those of ``tensors``, if any."""
    stated = [(tensor.shape, tensor.dtype) for tensor in tensors]
    given = [(value.shape, str(value.dtype)) for value in outputs]
    if stated and stated != given:
        raise ExportError(f"the outputs are {_words(given)}, the artifact states {_words(stated)}")
    return tuple(outputs)


def _specs(artifact: Artifact, side: str, shapes: Sequence[Tuple[int, ...]]) -> Sequence[TensorSpec]:
    """Return the specs of inputs or outputs for a call. The first input with the dynamic size decides on it."""
    tensors: Sequence[TensorSpec] = getattr(artifact, side)
    size = DynamicSize.of(artifact)
    if size is None:
        return tensors
    given = [shape[axis] for shape, axis in zip(shapes, size.inputs) if axis is not None and axis < len(shape)]
    if not given:
        return tensors
    if not size.allows(given[0]):
        raise ValueError(f"the inputs have a {size.name} of {given[0]}, the artifact takes a {size.words()}")
    found = resized([tensor.shape for tensor in tensors], getattr(size, side), given[0])
    return [replace(tensor, shape=shape) for tensor, shape in zip(tensors, found)]


def _by_name(tensors: Sequence[TensorSpec], named: Mapping[str, Any], known: bool) -> list[Any]:
    """Return the values of ``tensors``, which are the inputs that were not given in order."""
    if not known:
        raise ValueError("a bare model file takes its inputs in order: only its runtime knows their names")
    given = dict(pair for name, value in named.items() for pair in leaves(value, name))
    wanted = [tensor.name for tensor in tensors]
    for word, names in (("unknown", given.keys() - set(wanted)), ("missing", set(wanted) - given.keys())):
        if names:
            takes = ", ".join(wanted) or "no further input"
            raise ValueError(f"inputs: {word} {', '.join(sorted(names))}; the artifact takes {takes}")
    return [given[name] for name in wanted]


def _as_stated(value: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return an output in its stated type: a runtime may compute int64 and bool as another type of integers."""
    alike = (value.dtype.kind in "biu") == (np.dtype(dtype).kind in "biu")
    return value.astype(dtype, copy=False) if alike else value


def _words(values: Sequence[tuple[tuple[int, ...], str]]) -> str:
    return ", ".join(f"{dtype}{list(shape)}" for shape, dtype in values) or "none"
