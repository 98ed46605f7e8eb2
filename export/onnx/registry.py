"""Keep torch's table of ONNX operators from one export to the next: ``with kept_registry(): torch.onnx.export(...)``.

torch fills the table anew for every network, which is half of the CPU time of a small one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

_LOCK = Lock()
_OPEN: list[Any] = []  # torch's own function, once for every open block


@contextmanager
def kept_registry() -> Iterator[None]:
    """Let exports in the block share one table for each opset. They must add no operators of their own to it.

    Blocks of several threads may overlap; the last one that ends gives torch its own function back.

    The table is internal to torch. A torch that has it elsewhere fills its own, as without this block.
    """
    owner = _table()
    if owner is None:
        yield
        return
    with _LOCK:
        _OPEN.append(_OPEN[0] if _OPEN else owner.__dict__["from_torchlib"])
        owner.from_torchlib = staticmethod(_kept(owner))
    try:
        yield
    finally:
        with _LOCK:
            own = _OPEN.pop()
            if not _OPEN:
                owner.from_torchlib = own


def _table() -> Any:
    """Return the class of torch's table; None if this torch has another."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:
        return None
    return ONNXRegistry if "from_torchlib" in getattr(ONNXRegistry, "__dict__", {}) else None


@cache
def _kept(owner: Any) -> Callable[..., Any]:
    """Return the function that fills the table, which keeps what it has filled."""
    return cache(owner.from_torchlib)
