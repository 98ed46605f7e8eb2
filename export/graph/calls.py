"""Give a module that takes and returns nested values a flat form: tensors in, a flat tuple of tensors out.

``flat = flat_module(net, {"input_ids": ids, "past": [{"key": key}]})``; ``flat.input_names`` are ``input_ids`` and
``past.0.key``.
"""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from hnas.export.device.errors import ExportError
from hnas.export.device.signature import attributes, children

_IMMUTABLE = (type(None), str, bytes, int, float, torch.dtype, torch.device)
PREFIX = "net."  # of the names of weights and modules in a FlatModule


class FlatModule(nn.Module):
    """Call a module with flat tensors, and return its outputs as a flat tuple. Values of other types are constants.

    ``net``: the module.
    ``inputs``: the tensors of the example inputs, in the order of the arguments. Floats are float32: ``net`` gets its
    own type.
    ``input_names``: their dotted names.
    ``remarks``: sentences on what the flat form leaves out.
    """

    def __init__(self, net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.net = net
        found = list(_named_arguments(net, args, kwargs))
        values, self._spec = pytree.tree_flatten((args, kwargs))
        assert len(found) == len(values)
        assert all(a is b for (_, a), b in zip(found, values, strict=True))
        self._values = [None if isinstance(value, Tensor) else value for value in values]
        self._places = [index for index, value in enumerate(values) if isinstance(value, Tensor)]
        self._dtypes = [values[index].dtype for index in self._places]
        self.inputs = tuple(in_single(values[index]) for index in self._places)
        self.input_names = _distinct([found[index][0] for index in self._places])
        constants = [(name, value) for name, value in found if not isinstance(value, Tensor)]
        self.remarks = tuple(f"the input {name} is the constant {value!r:.40}" for name, value in constants)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors among the outputs of ``net``."""
        return tuple(value for _, value in self.named_outputs(*inputs) if isinstance(value, Tensor))

    def named_outputs(self, *inputs: Tensor) -> list[tuple[str, Any]]:
        """Return every output with its dotted name; a bare output has the name ``output_0``."""
        values = [value if isinstance(value, _IMMUTABLE) else copy.deepcopy(value) for value in self._values]
        for place, dtype, value in zip(self._places, self._dtypes, inputs, strict=True):
            values[place] = value if value.dtype is dtype else value.to(dtype)
        args, kwargs = pytree.tree_unflatten(values, self._spec)
        return list(_leaves(self.net(*args, **kwargs), ""))

    def is_plain(self, outputs: Sequence[tuple[str, Any]]) -> bool:
        """Return whether ``net`` itself takes the tensors in order and returns ``outputs`` as a flat tuple."""
        same = self._spec == pytree.tree_structure((self.inputs, {}))
        same = same and [value.dtype for value in self.inputs] == self._dtypes
        return same and all(name.isdigit() and isinstance(value, Tensor) for name, value in outputs)


def flat_module(module: nn.Module, example_inputs: Any) -> FlatModule:
    """Return ``module`` in its flat form.

    1. One tensor or array: the first argument. A tuple or list: the arguments in order.
    2. A dict: the arguments by name; or the first argument where ``forward`` has no such names.
    3. Arguments may be nested in dicts, lists, tuples, dataclasses, types that torch's pytree knows, and other objects
       with tensors among their attributes, such as a cache.
    4. Numbers, text, None and objects without tensors are constants.
    5. A FlatModule: its own flat inputs.

    Raises:
        ValueError: there is no tensor among the examples.
    """
    if isinstance(module, FlatModule):
        twin = copy.copy(module)
        twin.inputs = tuple(map(in_single, pytree.tree_map(_as_tensor, tuple(example_inputs))))
        return twin
    args, kwargs = _arguments(module, example_inputs)
    for _, part in _parts((args, kwargs)):
        _register(part)
    args, kwargs = pytree.tree_map(_as_tensor, (args, kwargs))
    flat = FlatModule(module, args, kwargs)
    if not flat.inputs:
        kinds = ", ".join(type(value).__name__ for value in pytree.tree_leaves((args, kwargs))) or "nothing"
        raise ValueError(f"example inputs must be tensors, got {kinds}")
    return flat


def output_names(
    found: Sequence[tuple[str, Any]], inputs: Sequence[str] = ()
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the tensors among the named outputs, and a remark on each other value.

    ``inputs``: the names of the inputs. Files need one name for one value, so an output of such a name ends in _out.

    Raises:
        ExportError: there is no tensor among the outputs.
    """
    found = [(f"output_{name}" if name[0].isdigit() else name, value) for name, value in found]
    tensors = [name for name, value in found if isinstance(value, Tensor)]
    if not tensors:
        kinds = ", ".join(type(value).__name__ for _, value in found) or "nothing"
        raise ExportError(f"a module must return at least one tensor, got {kinds}")
    remarks = [
        f"the output {name} is {value!r:.40}, no tensor: it is left out"
        for name, value in found
        if not isinstance(value, Tensor)
    ]
    apart = [f"{name}_out" if name in inputs else name for name in tensors]
    return _distinct(apart), tuple(remarks)


def _arguments(module: nn.Module, given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional arguments and those by name (cases 1 and 2 of ``flat_module``)."""
    if isinstance(given, Mapping):
        named = {str(name): value for name, value in given.items()}
        try:
            inspect.signature(module.forward).bind(**named)
        except TypeError:
            return (given,), {}
        return (), named
    plain = isinstance(given, tuple | list) and not hasattr(given, "_fields")
    return (tuple(given), {}) if plain else ((given,), {})


def _named_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every value in the arguments with its dotted name, which begins with the name of the parameter."""
    names: list[str] = []
    for parameter in inspect.signature(module.forward).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}.{index}" for index in range(len(args) - len(names))]
        elif parameter.kind is not parameter.KEYWORD_ONLY:
            names.append(parameter.name)
    names += [f"input_{index}" for index in range(len(names), len(args))]
    for name, value in (*zip(names, args, strict=False), *kwargs.items()):
        yield from _leaves(value, name)


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    parts = _children(value)
    if parts is None:
        yield name or "0", value
        return
    for key, part in parts:
        yield from _leaves(part, f"{name}.{key}" if name else key or "0")


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every value inside of ``value``, containers included."""
    for key, part in _children(value) or ():
        yield key, part
        yield from _parts(part)


def _children(value: Any) -> list[tuple[str, Any]] | None:
    """Return what a container holds, in the order of torch's pytree, which also knows types of other libraries."""
    known = pytree.SUPPORTED_NODES.get(type(value))
    if known is None or isinstance(value, Mapping | tuple | list) or is_dataclass(value):
        return children(value)
    if known.flatten_with_keys_fn is not None:
        pairs = known.flatten_with_keys_fn(value)[0]
        return [(str(pytree.keystr((key,))).strip(".[]'\""), part) for key, part in pairs]
    return [(str(index), part) for index, part in enumerate(known.flatten_fn(value)[0])]


def _register(part: Any) -> None:
    """Make the type of a container known to torch's pytree (case 3 of ``flat_module``)."""
    kind = type(part)
    if kind in pytree.SUPPORTED_NODES or isinstance(part, type):
        return
    if is_dataclass(part):
        torch.export.register_dataclass(kind)
    elif not isinstance(part, Mapping | tuple | list) and attributes(part):
        together = partial(_put_together, kind)
        pytree.register_pytree_node(kind, _taken_apart, together, flatten_with_keys_fn=_taken_apart_by_name)


def _taken_apart(value: Any) -> tuple[list[Any], tuple[tuple[str, ...], dict[str, Any]]]:
    """Return the attributes that hold tensors, and their names with the other attributes."""
    parts = dict(attributes(value))
    rest = {name: part for name, part in vars(value).items() if name not in parts}
    return list(parts.values()), (tuple(parts), rest)


def _taken_apart_by_name(value: Any) -> tuple[list[tuple[Any, Any]], tuple[tuple[str, ...], dict[str, Any]]]:
    """Return what ``_taken_apart`` does, with the name of each attribute as torch's pytree writes it."""
    parts, context = _taken_apart(value)
    return [(pytree.GetAttrKey(name), part) for name, part in zip(context[0], parts, strict=True)], context


def _put_together(kind: type, parts: Iterable[Any], context: tuple[tuple[str, ...], dict[str, Any]]) -> Any:
    """Return a new object. The module may write into it, so it shares nothing that can change."""
    names, rest = context
    value: Any = object.__new__(kind)
    vars(value).update({**copy.deepcopy(rest), **dict(zip(names, parts, strict=True))})
    return value


def _as_tensor(value: Any) -> Any:
    """Return an example as a tensor in memory of its own: capture would take the same tensor twice for one input."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value).reshape(value.shape))
    return value.detach().clone().contiguous() if isinstance(value, Tensor) else value


def in_single(value: Tensor) -> Tensor:
    """Return a tensor of any float type in float32, and any other tensor unchanged."""
    return value.float() if value.is_floating_point() else value


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names without characters that cannot be printed; a repeated name gets a number."""
    clean = ["".join(c if c.isprintable() and not c.isspace() else "_" for c in name) or "value" for name in names]
    seen: Counter[str] = Counter()
    found = []
    for name in clean:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return tuple(found)
