"""Keep torch's table of ONNX operators from one export to the next: ``with kept_registry(): torch.onnx.export(...)``.

torch fills the table anew for every network, which is a quarter of the time of a small one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any


@contextmanager
def kept_registry() -> Iterator[None]:
    """Let exports in the block share one table for each opset. They must add no operators of their own to it.

    The table is internal to torch. A torch that has it elsewhere fills its own, as without this block.
    """
    try:
        from torch.onnx._internal.exporter import _registration

        owner: Any = _registration.ONNXRegistry
        before = owner.__dict__["from_torchlib"]
    except (ImportError, AttributeError, KeyError):
        yield
        return
    owner.from_torchlib = staticmethod(_kept(owner))
    try:
        yield
    finally:
        owner.from_torchlib = before


@cache
def _kept(owner: Any) -> Callable[..., Any]:
    """Return the function that fills the table, which keeps what it has filled."""
    return cache(owner.from_torchlib)
