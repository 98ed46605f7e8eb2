"""Call the functions of CUDA's runtime library that an engine needs, without a Python package.

Every function except ``library`` raises ExportError if CUDA reports an error.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from functools import lru_cache
from pathlib import Path
from typing import Any, Callable

from hnas.export.device.errors import ExportError

TO_DEVICE, TO_HOST = 1, 2  # cudaMemcpyKind
_MAJOR, _MINOR = 75, 76  # cudaDevAttrComputeCapabilityMajor, ...Minor
_HOME = Path("/usr/local/cuda")
_PLACES = ("lib64/libcudart.so*", "targets/*/lib/libcudart.so*")


@lru_cache(maxsize=None)
def library() -> Any:
    """Return libcudart, or None if it is not installed."""
    there = sorted(str(path) for place in _PLACES for path in _HOME.glob(place))
    names = ["libcudart.so", ctypes.util.find_library("cudart"), *there]
    for name in filter(None, names):
        try:
            return ctypes.CDLL(name)
        except OSError:  # a stub, or a library of another architecture
            continue
    return None


def architecture() -> str:
    """Return the compute capability of the first GPU without its dot: 87 for an Orin."""
    digits = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        _call("cudaDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), ctypes.c_int(0))
        digits.append(str(value.value))
    return "".join(digits)


def allocate(size: int) -> int:
    """Allocate ``size`` bytes on the device and return their address."""
    place = ctypes.c_void_p()
    _call("cudaMalloc", ctypes.byref(place), ctypes.c_size_t(size))
    return int(place.value or 0)


def free(place: int) -> None:
    """Free the memory at the address ``place``, which ``allocate`` returned."""
    _call("cudaFree", ctypes.c_void_p(place))


def copy(target: int, source: int, size: int, kind: int) -> None:
    """Copy ``size`` bytes, and return when the copy is complete.

    ``target``, ``source``: addresses.
    ``kind``: TO_DEVICE or TO_HOST.
    """
    _call("cudaMemcpy", ctypes.c_void_p(target), ctypes.c_void_p(source), ctypes.c_size_t(size), ctypes.c_int(kind))


def stream() -> tuple[int, Callable[[], None]]:
    """Return a new stream, and a function that waits for all work of the stream."""
    found = ctypes.c_void_p()
    _call("cudaStreamCreate", ctypes.byref(found))
    return int(found.value or 0), lambda: _call("cudaStreamSynchronize", found)


def _call(name: str, *arguments: Any) -> None:
    code = getattr(library(), name)(*arguments)
    if code != 0:
        describe = library().cudaGetErrorString
        describe.restype = ctypes.c_char_p
        raise ExportError(f"CUDA failed: {name} gave {code}, {describe(code).decode()}")
