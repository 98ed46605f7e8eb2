"""Load a network of the user's own: a callable, the shapes of its inputs, and real inputs for int8."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hnas.export.device.errors import one_line
from hnas.export.graph.program import module_of
from hnas.export.graph.samples import Sample
from hnas.files import check_plain
from hnas.units import parse_shape

_LARGEST = 2**32  # bytes of real inputs
_NOT_IN_NUMPY = (torch.bfloat16, torch.complex32, torch.complex64, torch.complex128)
SEED = 0  # seed of random weights and random inputs that the callable makes


def load_network(model: str, shapes: Sequence[str] | None) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return the network that "package.module:callable" makes, and its example inputs.

    The callable takes no arguments. It returns a network (nn.Module or ExportedProgram), or (network, example inputs).
    The name may also be that of an nn.Module, which is then the network. Text that the user's code prints goes to
    standard error.

    shapes: the shapes of the inputs, such as "1x3x64x64". If given, seeded noise replaces the example inputs.

    Raises:
        ValueError: the callable cannot be imported or called, or returns something else. The message is one line.
    """
    torch.manual_seed(SEED)
    made = _call_model(model)
    net, examples = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(net, nn.Module | torch.export.ExportedProgram):
        raise ValueError(f"{model} returned {_describe_type(net)}; expected an nn.Module or (module, example inputs)")
    net = module_of(net)
    if shapes:
        return net, tuple(_noise(text) for text in shapes)
    return net, _as_examples(examples, model)


def _noise(text: str) -> Tensor:
    """Return seeded noise of the shape ``text``. Raise ValueError where the memory does not hold it."""
    shape = parse_shape(text)
    try:
        return torch.randn(shape)
    except (RuntimeError, TypeError):  # TypeError: a size that is no 64-bit integer
        raise ValueError(f"--input {text!r} does not fit in memory; write a smaller shape") from None


def read_calibration(file: Path, example: Sample, names: Sequence[str] = ()) -> Sample:
    """Return the arrays of a .npy or .npz file, one for each input, [N, ...].

    The arrays are in the order of the file, or in that of the input ``names`` where the file has the same names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has pickled objects, NaN, infinity, or arrays that do not fit the ``example``.
    """
    if not file.exists():
        raise FileNotFoundError(f"no calibration file {file}")
    check_plain(file, _LARGEST)
    try:
        arrays = _read_arrays(file, names)
    except Exception as error:  # the decoder of a broken archive may raise any error
        # numpy's own message would advise to unpickle the file.
        raise ValueError(
            f"{file} holds no plain arrays; write it with numpy.save or numpy.savez, no objects"
        ) from error
    if not _fits(arrays, example):
        said = ", ".join(f"{array.dtype}{list(array.shape)}" for array in arrays) or "nothing"
        need = ", ".join(f"{e.dtype}[{', '.join(map(str, ('N', *e.shape[1:])))}]" for e in example)
        raise ValueError(f"{file} holds {said}; the network takes {need}")
    if not all(np.isfinite(array).all() for array in arrays if array.dtype.kind == "f"):
        raise ValueError(f"{file} holds NaN or infinity")
    return arrays


def _read_arrays(file: Path, names: Sequence[str]) -> Sample:
    with file.open("rb") as stream:
        read = np.load(stream, allow_pickle=False)
        if not isinstance(read, np.ndarray) and sum(each.file_size for each in read.zip.infolist()) > _LARGEST:
            raise ValueError("the arrays are too large")
        if isinstance(read, np.ndarray):
            return (read,)
        return tuple(read[name] for name in (names if set(names) == set(read.files) else read.files))


def _fits(arrays: Sample, example: Sample) -> bool:
    """Return whether each input has an array of its type and shape, all with the same whole number of batches."""
    if len(arrays) != len(example):
        return False
    counts = set()
    for array, each in zip(arrays, example, strict=True):
        if not (array.ndim and each.ndim) or array.dtype != each.dtype or array.shape[1:] != each.shape[1:]:
            return False
        counts.add(divmod(len(array), len(each)))
    return len(counts) == 1 and all(whole and not rest for whole, rest in counts)


def _call_model(model: str) -> Any:
    """Return the value of the callable, or the nn.Module that has its name."""
    name, _, attribute = model.partition(":")
    if not (name and attribute):
        raise ValueError(f"--model {model!r} is not understood; write package.module:callable")
    with redirect_stdout(sys.stderr):
        found = getattr(_import_module(name), attribute, None)
        if found is None:
            raise ValueError(f"{name} has no {attribute!r}; --model takes package.module:callable")
        if not callable(found):
            what = f"{name} holds {_describe_type(found)}, not a callable, as {attribute!r}"
            raise ValueError(f"{what}; --model takes package.module:callable")
        return found if isinstance(found, nn.Module) else _call(found, model)


def _as_examples(given: Any, model: str) -> tuple[Tensor, ...]:
    """Return the example inputs that the callable made. Raise ValueError unless they are tensors of real numbers."""
    if given is None:
        raise ValueError(f"{model} returned no example inputs; give the shape of each, --input 1x3x224x224")
    examples = (given,) if isinstance(given, Tensor) else given
    if not (isinstance(examples, tuple | list) and examples and all(isinstance(value, Tensor) for value in examples)):
        raise ValueError(f"{model} returned {_describe_type(given)} as example inputs; expected tensors")
    odd = next((value for value in examples if value.dtype in _NOT_IN_NUMPY), None)
    if odd is not None:
        dtype = str(odd.dtype).removeprefix("torch.")
        raise ValueError(f"{model} returned example inputs of {dtype}; expected real numbers that numpy knows")
    return tuple(examples)


def _import_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ValueError(f"no module {name!r} in the current directory or the environment") from None
        raise ValueError(f"{name} needs {error.name}, which is not installed") from None
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        raise ValueError(f"{name} cannot be imported: {one_line(error)}") from error


def _call(function: Callable[[], Any], model: str) -> Any:
    try:
        return function()
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        raise ValueError(f"{model} cannot be called without arguments: {one_line(error)}") from error


def _describe_type(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} of {', '.join(type(part).__name__ for part in value) or 'nothing'}"
    return type(value).__name__
