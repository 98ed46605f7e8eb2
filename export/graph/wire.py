"""Send a program to another process: ``unpack(*pack(program))`` is an equal program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hnas.export.device.dynamic import DynamicSize
from hnas.export.device.errors import ExportError
from hnas.export.device.frames import Arrays, Header
from hnas.export.device.notation import read_argument, read_operator, write_node
from hnas.export.device.records import decode

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from hnas.export.graph.program import Program


def pack(program: Program) -> tuple[Header, Arrays]:
    """Return the program as a JSON header, and the bytes of every tensor. A shared tensor is packed once.

    Kept: names, order, arguments, types and shapes of values, memory order, tied tensors, marks of ``keep_float``, the
    passes that fired, the mark of a draft. Not kept: the source lines of a node, and the remarks.

    Raises:
        ExportError: a node has no JSON form; the message names the node.
    """
    from hnas.export.graph.marks import FLOAT
    from hnas.export.graph.nodes import constant_value

    tensors: dict[int, tuple[int, Tensor]] = {}  # by id; the entry keeps the tensor alive

    def number(value: Tensor) -> int:
        return tensors.setdefault(id(value), (len(tensors), value))[0]

    nodes, state = [], {}
    for node in program.module.graph.nodes:
        try:
            entry = write_node(node)
            if node.op == "call_function":
                read_operator(entry["target"], entry["kwargs"])
        except ValueError as error:
            raise ExportError(f"node {node.name} cannot go to another process: {error}") from None
        if node.op == "get_attr":
            state[entry["target"]] = number(constant_value(program.module, node))
        nodes.append({**entry, "value": _describe(node.meta.get("val")), "float": bool(node.meta.get(FLOAT))})
    inputs = [number(value) for value in program.inputs]
    laid = [_lay(value) for _, value in tensors.values()]
    header = {
        "nodes": nodes,
        "state": state,
        "inputs": inputs,
        "tensors": [described for described, _ in laid],
        "fired": [list(pair) for pair in program.fired],
        "names": [list(program.input_names), list(program.output_names)],
        "draft": program.draft,
        "dynamic": None if program.dynamic is None else program.dynamic.to_json(),
        "training": program.module.training,
    }
    return header, tuple(data for _, data in laid)


def unpack(header: Header, arrays: Sequence[np.ndarray[Any, Any]]) -> Program:
    """Return the program that ``pack`` packed. Raise ValueError for an operator that is not an ATen operator."""
    from torch import fx, nn

    from hnas.export.graph.marks import FLOAT
    from hnas.export.graph.program import Program

    tensors = [_tensor(described, data) for described, data in zip(header["tensors"], arrays, strict=True)]
    root, graph, nodes = nn.Module(), fx.Graph(), dict[str, fx.Node]()
    for name, index in header["state"].items():
        _register(root, name, tensors[index])
    for entry in header["nodes"]:
        args = tuple(read_argument(value, nodes) for value in entry["args"])
        kwargs = {name: read_argument(value, nodes) for name, value in entry["kwargs"].items()}
        op, target = entry["op"], entry["target"]
        if op == "output":
            args = (tuple(args[0]) if isinstance(args[0], list) else args[0],)
        if op == "call_function":
            target = read_operator(target, kwargs)
        node = graph.create_node(op, target, args, kwargs, entry["name"])
        value = tensors[header["state"][target]] if op == "get_attr" else _value(entry["value"])
        if value is not None:
            node.meta["val"] = value
        if entry["float"]:
            node.meta[FLOAT] = True
        nodes[entry["name"]] = node
    root.train(header["training"])
    fired = tuple((str(name), int(count)) for name, count in header["fired"])
    inputs = tuple(tensors[index] for index in header["inputs"])
    names, results = map(tuple, header["names"])
    module, size = fx.GraphModule(root, graph), _size(header["dynamic"])
    return Program(module, inputs, fired, names, results, dynamic=size, draft=header["draft"])


def _size(note: Any) -> DynamicSize | None:
    return None if note is None else decode(DynamicSize, note, "the program")


def _lay(value: Tensor) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
    """Return a tensor's description and its bytes in memory order; gaps and overlaps are removed."""
    import torch

    plain = value.detach()
    order = sorted(range(plain.ndim), key=plain.stride, reverse=True)
    if not plain.permute(order).is_contiguous():
        plain, order = plain.contiguous(), list(range(plain.ndim))
    data = plain.permute(order).reshape(-1).view(torch.uint8).numpy()
    return {**_describe(plain), "parameter": isinstance(value, torch.nn.Parameter)}, data


def _tensor(described: dict[str, Any], data: np.ndarray[Any, Any]) -> Tensor:
    import torch

    flat = torch.from_numpy(data).view(getattr(torch, described["dtype"]))
    value = flat.as_strided(described["shape"], described["stride"])
    return torch.nn.Parameter(value, requires_grad=False) if described["parameter"] else value


def _describe(value: Any) -> Any:
    """Return shape, stride and type of a tensor, a list of these for several tensors, None for any other value."""
    import torch

    if isinstance(value, torch.Tensor):
        name = str(value.dtype).removeprefix("torch.")
        return {"shape": list(value.shape), "stride": list(value.stride()), "dtype": name}
    return [_describe(part) for part in value] if isinstance(value, tuple | list) else None


def _value(described: Any) -> Any:
    """Return tensors without memory that have the described shapes and types."""
    import torch

    if isinstance(described, list):
        return tuple(_value(part) for part in described)
    if described is None:
        return None
    dtype = getattr(torch, described["dtype"])
    return torch.empty_strided(described["shape"], described["stride"], dtype=dtype, device="meta")


def _register(root: torch.nn.Module, name: str, value: Tensor) -> None:
    """Register a tensor in ``root`` under a dotted name."""
    import torch

    *path, leaf = name.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, torch.nn.Module())
        root = getattr(root, part)
    if isinstance(value, torch.nn.Parameter):
        root.register_parameter(leaf, value)
    else:
        root.register_buffer(leaf, value)
