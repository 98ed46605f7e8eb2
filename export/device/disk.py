"""Read files that came from elsewhere: plain files of a bounded size, and the names of files that a model refers to.

``read_plain(Path("artifact.json"), 2**24)``. A pipe, a device or a socket is refused before it is opened, because
opening it can block or act on hardware.
"""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path
from typing import BinaryIO, Dict, Iterator, Tuple

LARGEST_MODEL = 2**31  # bytes of a protobuf
_MOST_PARTS = 2_000_000  # messages of an ONNX file that are visited, at most: a few seconds
# The messages of an ONNX file that lead to a tensor: field number -> kind of message, named as in onnx.proto.
_FIELDS: Dict[str, Dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}


def open_plain(path: Path) -> BinaryIO:
    """Open a plain file for reading. Links are followed.

    Raises:
        ValueError: it is a folder, a pipe, a device or a socket.
        OSError: it is missing or cannot be read.
    """
    plain_size(path)
    # A pipe may have replaced the file since the check. With O_NONBLOCK, opening the pipe does not block.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path} is not a plain file")
    return os.fdopen(descriptor, "rb")


def plain_size(path: Path) -> int:
    """Return the bytes of a plain file, without opening it. Raises as `open_plain`."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path} is not a plain file")
    return found.st_size


def read_plain(path: Path, limit: int) -> bytes:
    """Return the content of a plain file. Raise ValueError if it has more than ``limit`` bytes, or as `open_plain`."""
    with open_plain(path) as file:
        data = file.read(limit + 1) if os.fstat(file.fileno()).st_size <= limit else None
    if data is None or len(data) > limit:
        raise ValueError(f"{path} is larger than {limit} bytes")
    return data


def read_bounded(path: Path, limit: int, absent: str) -> bytes:
    """Return the content of a plain file. Raise ValueError as `read_plain`, with ``absent`` if there is no file."""
    try:
        return read_plain(path, limit)
    except FileNotFoundError:
        raise ValueError(absent) from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None


def external_names(path: Path) -> Tuple[str, ...]:
    """Return the names of the files with weights that an ONNX file refers to, as they stand there, without repeats.

    A file that is not ONNX has none: its runtime refuses it.

    Raises:
        ValueError: the file is not plain, is larger than ONNX allows, or has more parts than any network.
    """
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > LARGEST_MODEL:
            raise ValueError(f"{path} has {size} bytes, an ONNX file has at most {LARGEST_MODEL}")
        if not size:
            return ()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data.find(b"location") < 0:  # most files have all weights inside
                return ()
            try:
                return tuple(dict.fromkeys(_locations(data)))
            except IndexError:  # cut off in the middle of a number
                return ()
            except OverflowError:
                raise ValueError(f"{path} has more than {_MOST_PARTS} parts, which no network has") from None


def _locations(data: mmap.mmap) -> Iterator[str]:
    """Yield the value of each entry "location" of each tensor. Raise OverflowError after ``_MOST_PARTS`` messages."""
    waiting, visited = [("model", 0, len(data))], 0
    while waiting:
        kind, start, end = waiting.pop()
        inner, entry = _FIELDS.get(kind, {}), {}
        for number, first, last in _fields(data, start, end):
            visited += 1
            if visited > _MOST_PARTS:
                raise OverflowError
            if kind == "entry":
                entry[number] = data[first:last]
            elif number in inner:
                waiting.append((inner[number], first, last))
        if entry.get(1) == b"location":
            yield entry.get(2, b"").decode("utf-8", "replace")


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[Tuple[int, int, int]]:
    """Yield (number, start, end) of each field of a protobuf message that has bytes. Stop at other bytes."""
    while start < end:
        tag, start = _varint(data, start)
        kind = tag & 7
        if kind == 0:
            _, start = _varint(data, start)
        elif kind in (1, 5):
            start += 8 if kind == 1 else 4
        elif kind == 2:
            size, start = _varint(data, start)
            if start + size > end:
                return
            yield tag >> 3, start, start + size
            start += size
        else:
            return


def _varint(data: mmap.mmap, start: int) -> Tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = data[start]
        start += 1
        value |= (byte & 127) << shift
        if byte < 128:
            break
        shift += 7
    return value, start
