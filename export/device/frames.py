"""Exchange requests and replies between a parent and its child process, as frames over pipes.

A frame is a magic number, sizes, a JSON header and the raw bytes of the arrays. Nothing is pickled, and a transport may
start the child on another machine. The child calls ``serve(dispatch(target))``.
"""

from __future__ import annotations

import json
import os
import queue
import struct
import sys
import threading
from math import prod
from operator import index
from typing import Any, Callable, Dict, Sequence, Tuple

import numpy as np

from hnas.export.device.errors import ExportError, Unavailable, one_line

Header = Dict[str, Any]
Arrays = Tuple["np.ndarray[Any, Any]", ...]
Frame = Tuple[Header, Arrays]

PROTOCOL = 3
_PREFIX = struct.Struct(">4sIQ")  # magic, bytes of the header, bytes of the arrays
_MAGIC = b"hnas"
_LARGEST_TEXT, _LARGEST = 2**28, 2**34  # bytes of a header, and of all arrays of a frame, at most


def pack_frame(header: Header, arrays: Sequence[np.ndarray[Any, Any]]) -> bytes:
    """Return a frame as bytes."""
    plain = [np.asarray(array, order="C") for array in arrays]
    for array in plain:
        _check_dtype(array.dtype)
    described = {**header, "arrays": [[array.dtype.str, list(array.shape)] for array in plain]}
    text = json.dumps(described).encode()
    body = [array.reshape(-1).view(np.uint8).data for array in plain]
    return b"".join([_PREFIX.pack(_MAGIC, len(text), sum(map(len, body))), text, *body])


def unpack_frame(read: Callable[[int], bytearray]) -> Frame:
    """Return the next frame. ``read(n)`` returns exactly n new bytes. Raise ValueError if the bytes are not a frame."""
    magic, n_text, n_body = _PREFIX.unpack(read(_PREFIX.size))
    if magic != _MAGIC or n_text > _LARGEST_TEXT or n_body > _LARGEST:
        raise ValueError(f"no frame starts with {bytes(magic)!r}")
    header = json.loads(read(n_text))
    try:
        described = [(np.dtype(name), [*map(index, shape)]) for name, shape in header.pop("arrays")]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"the header of a frame does not describe its arrays: {error}") from None
    for dtype, _ in described:
        _check_dtype(dtype)
    sizes = [dtype.itemsize * prod(shape) for dtype, shape in described]
    if sum(sizes) != n_body or min(sizes, default=0) < 0:
        raise ValueError(f"the arrays of a frame have {n_body} bytes, its header says {sum(sizes)}")
    pairs = zip(described, sizes)  # each array has memory of its own
    return header, tuple(np.frombuffer(read(size), dtype).reshape(shape) for (dtype, shape), size in pairs)


def _check_dtype(dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "biuf":
        raise ValueError(f"an array of {dtype} cannot go to a worker; only numbers and bool can")


def dispatch(target: object) -> Callable[[Header, Arrays], Frame]:
    """Return a function that answers the request "x" with ``target.do_x(header, arrays)``.

    If that call raises, the reply has the message as ``error`` and the kind of the exception as ``type``.
    """

    def answer(header: Header, arrays: Arrays) -> Frame:
        try:
            reply: Frame = getattr(target, "do_" + header["do"])(header, arrays)
            return reply
        except Exception as error:  # noqa: BLE001 - a runtime may raise anything; the parent gets one line
            told = isinstance(error, (ExportError, ValueError)) and str(error)
            kind = next((t.__name__ for t in (Unavailable, ExportError, ValueError) if isinstance(error, t)), "")
            return {"error": str(error).splitlines()[0] if told else one_line(error), "type": kind}, ()

    return answer


def serve(answer: Callable[[Header, Arrays], Frame]) -> None:
    """Answer requests on stdin until stdin closes. A closed stdin ends this process even during a call."""
    source, sink = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)  # runtimes print to descriptor 1, so frames get another one
    requests: queue.SimpleQueue[Frame] = queue.SimpleQueue()
    stream = os.fdopen(source, "rb")

    def read(size: int) -> bytearray:
        data = bytearray(size)
        if stream.readinto(data) < size:
            os._exit(0)  # the parent closed the pipe or died
        return data

    def receive() -> None:
        try:
            while True:
                requests.put(unpack_frame(read))
        finally:
            os._exit(1)  # the bytes were not a frame

    threading.Thread(target=receive, daemon=True).start()
    while True:
        message = memoryview(pack_frame(*answer(*requests.get())))
        sys.stdout.flush()
        while message:
            message = message[os.write(sink, message) :]
