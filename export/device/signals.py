"""Restore the stack on which a thread handles signals after a runtime replaced it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """Mirror ``stack_t`` of sigaltstack(2) on Linux."""

    _fields_ = (("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def signal_stack() -> _Stack | None:
    """Return the signal stack of this thread, or None if the system does not have such stacks."""
    library, found = ctypes.CDLL(None), _Stack()
    known = hasattr(library, "sigaltstack") and library.sigaltstack(None, ctypes.byref(found)) == 0
    return found if known else None


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Restore the signal stack of this thread after the block.

    OpenVINO's CPU plugin gives a new stack to the thread that loads the plugin. When a plugin ends, it restores the
    previous stack, unless another stack is in use by then. If two plugins end in the order in which they began, the
    thread keeps a stack in freed memory. The next signal with a handler, such as the end of a data loader's child, then
    kills the process. The stack restored here belongs to no plugin, so no plugin changes it later.
    """
    before = signal_stack()
    try:
        yield
    finally:
        if before is not None:  # the kernel refuses a stack that has become too small
            ctypes.CDLL(None).sigaltstack(ctypes.byref(before), None)
