"""Load a network of the user's own: a callable with its example inputs, and real inputs for int8."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hnas.deployment.examples import GivenInputs, nest, read_file
from hnas.deployment.labels import split_labels
from hnas.deployment.places import require_model
from hnas.export.device.errors import one_line
from hnas.export.device.signature import leaves
from hnas.export.graph.calls import FlatModule, flat_module
from hnas.export.graph.program import module_of
from hnas.export.graph.samples import Sample, to_sample, to_samples

SEED = 0  # seed of random weights and random inputs that the callable makes


def load_network(model: str, given: GivenInputs | None) -> FlatModule:
    """Return the network that "package.module:callable" makes, with its example inputs, in flat form.

    The callable takes no arguments. It returns a network (nn.Module or ExportedProgram), or (network, example inputs).
    Example inputs have any form that `hnas.export.compile` takes, such as a dict by name. The name may also be that of
    an nn.Module, which is then the network. Text that the user's code prints goes to standard error.

    given: inputs that replace those of the callable. Shapes keep the names of the callable's inputs.

    Raises:
        ValueError: the callable cannot be imported or called, or returns something else. The message is one line.
    """
    torch.manual_seed(SEED)
    made = _call_model(model)
    net, examples = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(net, nn.Module | torch.export.ExportedProgram):
        raise ValueError(f"{model} returned {_describe_type(net)}; expected an nn.Module or (module, example inputs)")
    net = module_of(net)
    if given is None:
        return _flat(net, examples, f"{model} returned")
    values = given.load()
    if values is not None:
        return _flat(net, nest(values) if isinstance(values, Mapping) else values, "--input holds")
    noise = given.noise()
    if isinstance(noise, dict) or examples is None:
        return flat_module(net, noise)
    flat = _flat(net, examples, f"{model} returned")
    return flat_module(flat if len(flat.inputs) == len(noise) else net, noise)


def _flat(net: nn.Module, examples: Any, who: str) -> FlatModule:
    """Return the network with its examples. Raise ValueError unless they hold tensors of real numbers."""
    if examples is None:
        raise ValueError(f"{who} no example inputs; give the shape of each, --input 1x3x224x224")
    try:
        flat = flat_module(net, examples)
    except ValueError:
        raise ValueError(f"{who} {_describe_type(examples)} as example inputs; expected tensors") from None
    odd = next((value.dtype for value in flat.inputs if value.is_complex()), None)
    if odd is not None:
        dtype = str(odd).removeprefix("torch.")
        raise ValueError(f"{who} example inputs of {dtype}; expected real numbers")
    return flat


def read_calibration(file: Path, example: Sample, names: Sequence[str] = ()) -> list[Sample]:
    """Return the real inputs in a file as samples with the batch size of the ``example``, see `read_labelled`."""
    return read_labelled(file, example, names)[0]


def read_labelled(
    file: Path, example: Sample, names: Sequence[str] = ()
) -> tuple[list[Sample], NDArray[np.int64] | None]:
    """Return the real inputs in a .npy, .npz or .pt file as samples with the batch size of the ``example``.

    The second value has the label of each sample; it is None if the file has no labels.

    names: the names of the inputs. Arrays go by name where the file has these names, else in order.

    1. Arrays [N, ...], one for each input.
    2. A list of samples, each in the form of the example inputs (.pt).

    In both cases with labels, or without: see `split_labels`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has pickled objects, NaN, infinity, arrays that do not fit the ``example``, or labels that
            do not fit the samples.
    """
    value = read_file(file, "calibration")
    values = value if isinstance(value, list) else [value]
    found: list[Sample] = []
    labels: list[NDArray[np.int64]] = []
    for whole in values:
        part, own = split_labels(whole, names, len(example))
        labels += [] if own is None else [own]
        arrays = _in_order(part, names)
        if not all(np.isfinite(array).all() for array in arrays if array.dtype.kind == "f"):
            raise ValueError(f"{file} holds NaN or infinity")
        try:
            calls = to_samples([arrays], example, "calibration")
        except ValueError:
            said = ", ".join(f"{array.dtype}{list(array.shape)}" for array in arrays) or "nothing"
            need = ", ".join(f"{e.dtype}[{', '.join(map(str, ('N', *e.shape[1:])))}]" for e in example)
            raise ValueError(f"{file} holds {said}; the network takes {need}") from None
        found += calls
        _check_count(file, own, len(calls))
    joined = np.concatenate(labels) if labels else None
    _check_count(file, joined, len(found))  # some parts may have no labels
    return found, joined


def _check_count(file: Path, labels: NDArray[np.int64] | None, calls: int) -> None:
    """Raise ValueError unless there is a label for each call of the network. None: there are no labels."""
    if labels is not None and len(labels) != calls:
        raise ValueError(f"{file} holds {len(labels)} labels for {calls} calls of the network; give one for each")


def _in_order(value: Any, names: Sequence[str]) -> Sample:
    """Return the arrays in a value, those of ``names`` where it has all of them, else in its order."""
    named = dict(leaves(value)) if isinstance(value, Mapping) else {}
    chosen = [named[name] for name in names] if names and set(names) <= set(named) else value
    return to_sample(chosen)


def _call_model(model: str) -> Any:
    """Return the value of the callable, or the nn.Module that has its name."""
    require_model(model)
    name, _, attribute = model.partition(":")
    with redirect_stdout(sys.stderr):
        found = getattr(_import_module(name), attribute, None)
        if found is None:
            raise ValueError(f"{name} has no {attribute!r}; --model takes package.module:callable")
        if not callable(found):
            what = f"{name} holds {_describe_type(found)}, not a callable, as {attribute!r}"
            raise ValueError(f"{what}; --model takes package.module:callable")
        return found if isinstance(found, nn.Module) else _call(found, model)


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
