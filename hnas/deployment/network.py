"""What a user hands to an export: the callable that makes a network, the shapes that it takes, real inputs for int8."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hnas.export.device.errors import one_line
from hnas.export.graph.program import module_of

Arrays = tuple[NDArray[Any], ...]
_COMPLEX = (torch.complex32, torch.complex64, torch.complex128)
SEED = 0  # of random weights and random inputs, where the callable makes them


def load(model: str, shapes: Sequence[str] | None) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The network that "package.module:callable" returns and its example inputs: seeded noise of ``shapes``, if given.

    The callable takes nothing and returns a network (nn.Module or ExportedProgram), or (network, example inputs); an
    nn.Module in its place is the network itself. ValueError in one line for everything else; what the module prints
    goes to standard error.
    """
    name, _, attribute = model.partition(":")
    if not (name and attribute):
        raise ValueError(f"--model {model!r} is not understood; write package.module:callable")
    torch.manual_seed(SEED)
    with redirect_stdout(sys.stderr):
        found = getattr(_module(name), attribute, None)
        if not callable(found):
            what = "has no" if found is None else f"holds {_kind(found)}, not a callable, as"
            raise ValueError(f"{name} {what} {attribute!r}; --model takes package.module:callable")
        made = found if isinstance(found, nn.Module) else _call(found, model)
    net, given = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(net, nn.Module | torch.export.ExportedProgram):
        raise ValueError(f"{model} returned {_kind(made)}; expected an nn.Module or (module, example inputs)")
    net = module_of(net)
    if shapes:
        return net, tuple(torch.randn(sizes(text)) for text in shapes)
    if given is None:
        raise ValueError(f"{model} returned no example inputs; give the shape of each, --input 1x3x224x224")
    examples = (given,) if isinstance(given, Tensor) else given
    if not (isinstance(examples, tuple | list) and examples and all(isinstance(value, Tensor) for value in examples)):
        raise ValueError(f"{model} returned {_kind(given)} as example inputs; expected tensors")
    odd = next((value for value in examples if value.dtype in (torch.bfloat16, *_COMPLEX)), None)
    if odd is not None:
        raise ValueError(f"{model} returned example inputs of {_dtype(odd)}; expected real numbers that numpy knows")
    return net, tuple(examples)


def read_calibration(file: Path, examples: Sequence[Tensor], inputs: Sequence[str] = ()) -> Arrays:
    """The arrays of a .npy or .npz file, one for each input, [N, ...]; pickled ones are refused.

    They come in order, or by the names of the ``inputs`` where those are theirs.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no calibration file {file}")
    try:
        with file.open("rb") as stream:
            read = np.load(stream, allow_pickle=False)
            named = [] if isinstance(read, np.ndarray) else read.files
            order = inputs if set(inputs) == set(named) else named
            arrays = (read,) if isinstance(read, np.ndarray) else tuple(read[name] for name in order)
    except Exception as error:  # a broken archive raises whatever its decoder likes
        # numpy's own message would advise to unpickle it.
        raise ValueError(
            f"{file} holds no plain arrays; write it with numpy.save or numpy.savez, no objects"
        ) from error
    if not _fits(arrays, examples):
        said = ", ".join(f"{array.dtype}{list(array.shape)}" for array in arrays) or "nothing"
        need = ", ".join(f"{_dtype(e)}[{', '.join(map(str, ('N', *e.shape[1:])))}]" for e in examples)
        raise ValueError(f"{file} holds {said}; the network takes {need}")
    if not all(np.isfinite(array).all() for array in arrays if array.dtype.kind == "f"):
        raise ValueError(f"{file} holds NaN or infinity")
    return arrays


def _fits(arrays: Arrays, examples: Sequence[Tensor]) -> bool:
    """One array an input, of its type and shape, all with the same whole number of batches."""
    if len(arrays) != len(examples):
        return False
    counts = set()
    for array, example in zip(arrays, examples, strict=True):
        if not (array.ndim and example.ndim) or str(array.dtype) != _dtype(example):
            return False
        if array.shape[1:] != tuple(example.shape[1:]):
            return False
        counts.add(divmod(len(array), len(example)))
    return len(counts) == 1 and all(whole and not rest for whole, rest in counts)


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _module(name: str) -> Any:
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


def sizes(text: str) -> tuple[int, ...]:
    """The shape that "1x3x224x224" says; ValueError for anything else."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text):
        raise ValueError(f"--input {text!r} is not understood; write a shape, batch first: 1x3x224x224")
    return tuple(map(int, text.split("x")))


def _kind(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} of {', '.join(type(part).__name__ for part in value) or 'nothing'}"
    return type(value).__name__
