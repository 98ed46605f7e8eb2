"""Write the nodes of an ATen graph as plain JSON and read them back, for files and for other processes."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, Mapping

from hnas.export.device.operators import OPERATORS

if TYPE_CHECKING:
    from torch import fx


def write_node(node: fx.Node) -> dict[str, Any]:
    """Return a node as JSON: name, kind, target, arguments. Raise ValueError for an argument that JSON cannot hold."""
    arguments = {
        "args": _write_argument(node.args),
        "kwargs": {name: _write_argument(value) for name, value in node.kwargs.items()},
    }
    target = "getitem" if node.target is operator.getitem else str(node.target)
    return {"name": node.name, "op": node.op, "target": target, **arguments}


def _write_argument(value: Any) -> Any:
    """Return an argument as JSON. Lists stay lists. A type that JSON lacks becomes an object with one key."""
    import torch
    from torch import fx

    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, (tuple, list)):
        return [_write_argument(item) for item in value]
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return {"float": str(value)}
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
        return {"torch": str(value)[len("torch.") :]}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise ValueError(f"an argument of type {type(value).__name__} cannot be written")


def read_argument(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    """Return the argument that ``_write_argument`` wrote. Raise ValueError for an unknown form.

    ``nodes``: the nodes that were read before, by name.
    """
    import torch

    if isinstance(value, list):
        return [read_argument(item, nodes) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "node":
        return nodes[content]
    if kind == "float" and content in ("inf", "-inf"):
        return float(content)
    if kind == "device" and content == "cpu":
        return torch.device("cpu")
    if kind == "torch" and isinstance(getattr(torch, content, None), (torch.dtype, torch.layout, torch.memory_format)):
        return getattr(torch, content)
    raise ValueError(f"unknown argument {kind}: {content!r}")


def read_operator(target: str, kwargs: Mapping[str, Any]) -> Any:
    """Return the ATen operator ``target``, such as aten.conv2d.default.

    Only operators of the list `hnas.export.device.operators.OPERATORS` are read, and none that writes in place. The
    names in ``kwargs`` become code, so each must be an argument of the operator.

    Raises:
        ValueError: the operator is refused or unknown, or ``kwargs`` has an unknown name.
    """
    import torch

    if target == "getitem" and not kwargs:
        return operator.getitem
    namespace, name, overload, *more = (*target.split("."), "", "")
    listed = namespace == "aten" and name in OPERATORS and not any(more)
    packet = getattr(torch.ops.aten, name, None) if listed else None
    if packet is not None and overload in packet.overloads():
        found = getattr(packet, overload)
        known = {argument.name for argument in found._schema.arguments}
        if not found._schema.is_mutable and known.issuperset(kwargs):
            return found
    raise ValueError(f"operator {target!r} is not allowed here")
