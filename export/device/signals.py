"""The stack that a thread handles signals on, kept from a runtime that takes it away (device half: Python 3.8)."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """``stack_t`` of sigaltstack(2), as Linux lays it out."""

    _fields_ = (("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def signal_stack() -> _Stack | None:
    """The stack that this thread has for signals; None where the system has no such thing."""
    library, found = ctypes.CDLL(None), _Stack()
    known = hasattr(library, "sigaltstack") and library.sigaltstack(None, ctypes.byref(found)) == 0
    return found if known else None


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """After the block, this thread handles signals on the stack that it had before.

    OpenVINO's CPU plugin gives the thread that loads it a stack of its own, and each plugin on its end brings back the
    one before, unless another is in use by then. When two end in the order in which they began, the thread is left with
    memory that was returned: the next signal with a handler (a child of a data loader that ends, say) kills the
    process. What was brought back here belongs to no plugin, so none of them touches it.
    """
    before = signal_stack()
    try:
        yield
    finally:
        if before is not None:  # the kernel refuses one that is too small for what the process computes with by now
            ctypes.CDLL(None).sigaltstack(ctypes.byref(before), None)
