"""The few calls of CUDA's runtime library that running an engine takes: no package is needed for them."""

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
    """libcudart, or None where there is none."""
    there = sorted(str(path) for place in _PLACES for path in _HOME.glob(place))
    names = ["libcudart.so", ctypes.util.find_library("cudart"), *there]
    for name in filter(None, names):
        try:
            return ctypes.CDLL(name)
        except OSError:  # a stub or another architecture's
            continue
    return None


def architecture() -> str:
    """The first GPU's compute capability without its dot: 87 for an Orin."""
    digits = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        _call("cudaDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), ctypes.c_int(0))
        digits.append(str(value.value))
    return "".join(digits)


def allocate(size: int) -> int:
    """The address of ``size`` new bytes on the device."""
    place = ctypes.c_void_p()
    _call("cudaMalloc", ctypes.byref(place), ctypes.c_size_t(size))
    return int(place.value or 0)


def free(place: int) -> None:
    """Give back what ``allocate`` gave."""
    _call("cudaFree", ctypes.c_void_p(place))


def copy(target: int, source: int, size: int, kind: int) -> None:
    """Copy bytes TO_DEVICE or TO_HOST; returns when that is done."""
    _call("cudaMemcpy", ctypes.c_void_p(target), ctypes.c_void_p(source), ctypes.c_size_t(size), ctypes.c_int(kind))


def stream() -> tuple[int, Callable[[], None]]:
    """A new stream, and the call that waits for all that was put into it."""
    found = ctypes.c_void_p()
    _call("cudaStreamCreate", ctypes.byref(found))
    return int(found.value or 0), lambda: _call("cudaStreamSynchronize", found)


def _call(name: str, *arguments: Any) -> None:
    code = getattr(library(), name)(*arguments)
    if code != 0:
        describe = library().cudaGetErrorString
        describe.restype = ctypes.c_char_p
        raise ExportError(f"CUDA failed: {name} gave {code}, {describe(code).decode()}")
