"""Profile the operators of a TFLite model through LiteRT's C library, because its Python package has no profiler.

``profile(model, inputs, threads, runs)``. The model runs as a LiteRT compiled model, with the same XNNPACK and the same
number of threads as in an interpreter. No memory is freed: call it in a process that ends soon.
"""

from __future__ import annotations

import ctypes
from ctypes import Structure, byref, c_char_p, c_int, c_int64, c_size_t, c_uint64, c_void_p
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hnas.export.device.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_CPU, _WRITE, _FIRST = c_int(1), c_int(1), c_size_t(0)  # accelerator, lock mode, signature
_OPERATOR, _OF_DELEGATE, _BY_DELEGATE = 2, 4, 8  # event types that stand for one operator
_TYPES, _SOURCES = {1 << bit for bit in range(9)}, {0, 1, 2}
_TENSOR_TYPE = 512  # bytes, more than a LiteRtRankedTensorType has


class Ran(NamedTuple):
    """Describe one operator that ran.

    name: its name in the report of the runtime.
    delegated: whether XNNPACK ran it.
    microseconds: its time, in whole microseconds.
    """

    name: str
    delegated: bool
    microseconds: int


class _Event(Structure):  # ProfiledEventData of LiteRT 2; memory before and after is three numbers each
    _fields_ = (
        ("name", c_void_p),
        ("type", c_int),
        ("start", c_uint64),
        ("microseconds", c_uint64),
        ("memory", c_int64 * 6),
        ("first", c_uint64),
        ("second", c_uint64),
        ("source", c_int),
    )


def profile(model: Path, inputs: Mapping[str, NDArray[Any]], threads: int, runs: int) -> list[list[Ran]]:
    """Return the operators of each of ``runs`` calls in order, after two calls that are not counted.

    inputs: arrays by tensor name.

    Raises:
        ExportError: this LiteRT lacks the functions, or their output has another layout.
    """
    compiled = _Compiled(model, threads)
    call = compiled.caller(inputs)
    profiler = compiled.made("LiteRtCompiledModelGetProfiler", compiled.handle)
    found = []
    for number in range(runs + 2):
        compiled.do("LiteRtResetProfiler", profiler)
        compiled.do("LiteRtStartProfiler", profiler)
        call()
        compiled.do("LiteRtStopProfiler", profiler)
        if number >= 2:
            found.append(compiled.events(profiler))
    return found


class _Compiled:
    """Compile a model with LiteRT, with profiling enabled, and call the functions of LiteRT's library."""

    def __init__(self, model: Path, threads: int) -> None:
        package = find_spec("ai_edge_litert")
        if package is None or package.origin is None:
            raise ExportError("tflite-runtime has no profiler; ai-edge-litert 2 has")
        try:
            self._library = ctypes.CDLL(str(Path(package.origin).parent / "libLiteRt.so"))
        except OSError as error:
            raise ExportError(f"this ai-edge-litert has no library to profile with: {error}") from None
        self._kept: list[Any] = []  # memory that the library points to
        self._environment = c_void_p()
        self.do("LiteRtCreateEnvironment", 0, None, byref(self._environment))
        self._model = self.made("LiteRtCreateModelFromFile", self._environment, str(model).encode())
        options = self.made("LiteRtCreateOptions")
        self.do("LiteRtSetOptionsHardwareAccelerators", options, _CPU)
        self._set(options, "runtime_options_string", "enable_profiling = true\n")
        self._set(options, "xnnpack", f"num_threads = {threads}\n")
        self.handle = self.made("LiteRtCreateCompiledModel", self._environment, self._model, options)

    def do(self, name: str, *arguments: Any) -> None:
        """Call a library function that returns a status; raise ExportError if it fails."""
        try:
            function = getattr(self._library, name)
        except AttributeError:
            raise ExportError(f"this ai-edge-litert has no {name}; its profiler is of another version") from None
        status = function(*arguments)
        if status != 0:
            raise ExportError(f"{name} of LiteRT failed with status {status}")

    def made(self, name: str, *arguments: Any) -> c_void_p:
        """Call a library function that writes a handle to its last argument, and return the handle."""
        handle = c_void_p()
        self.do(name, *arguments, byref(handle))
        return handle

    def caller(self, inputs: Mapping[str, NDArray[Any]]) -> Any:
        """Return a function that runs the model once on ``inputs``."""
        given, taken = self._buffers("Input"), self._buffers("Output")
        for name, buffer in given:
            value, size, place = inputs[name], c_size_t(), c_void_p()
            self.do("LiteRtGetTensorBufferPackedSize", buffer, byref(size))
            if size.value != value.nbytes:
                raise ExportError(f"tensor {name} has {size.value} bytes in LiteRT, {value.nbytes} are given")
            self.do("LiteRtLockTensorBuffer", buffer, byref(place), _WRITE)
            ctypes.memmove(place, value.tobytes(), size.value)
            self.do("LiteRtUnlockTensorBuffer", buffer)
        ends = [(c_size_t(len(side)), (c_void_p * len(side))(*(b for _, b in side))) for side in (given, taken)]
        return lambda: self.do("LiteRtRunCompiledModel", self.handle, _FIRST, *ends[0], *ends[1])

    def events(self, profiler: c_void_p) -> list[Ran]:
        """Return the operators of the last call."""
        count = c_int()
        self.do("LiteRtGetNumProfilerEvents", profiler, byref(count))
        found = (_Event * count.value)()
        self.do("LiteRtGetProfilerEvents", profiler, count, found)
        # Check the layout before a name is dereferenced: a wrong pointer would crash.
        if any(event.type not in _TYPES or event.source not in _SOURCES for event in found):
            raise ExportError("LiteRT's profile has another layout than that of version 2")
        operators = [event for event in found if event.type in (_OPERATOR, _OF_DELEGATE, _BY_DELEGATE)]
        return [
            Ran(ctypes.string_at(event.name).decode(), event.type != _OPERATOR, event.microseconds)
            for event in operators
        ]

    def _set(self, options: c_void_p, name: str, text: str) -> None:
        data = ctypes.create_string_buffer(text.encode())
        release = ctypes.CFUNCTYPE(None, c_void_p)(lambda _: None)
        self._kept += [data, release]
        self.do("LiteRtAddOpaqueOptions", options, self.made("LiteRtCreateOpaqueOptions", name.encode(), data, release))

    def _buffers(self, side: str) -> list[tuple[str, c_void_p]]:
        """Allocate memory for each tensor of ``side`` (Input or Output); return it with the tensors' names."""
        signature, count = self.made("LiteRtGetModelSignature", self._model, _FIRST), c_size_t()
        self.do(f"LiteRtGetNumSignature{side}s", signature, byref(count))
        found = []
        for number in map(c_size_t, range(count.value)):
            tensor = self.made(f"LiteRtGetSignature{side}TensorByIndex", signature, number)
            name, kind = c_char_p(), ctypes.create_string_buffer(_TENSOR_TYPE)
            self.do("LiteRtGetTensorName", tensor, byref(name))
            self.do("LiteRtGetRankedTensorType", tensor, kind)
            wants = self.made(f"LiteRtGetCompiledModel{side}BufferRequirements", self.handle, _FIRST, number)
            buffer = self.made("LiteRtCreateManagedTensorBufferFromRequirements", self._environment, kind, wants)
            found.append(((name.value or b"").decode(), buffer))
        return found
