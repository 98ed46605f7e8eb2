"""Take the bytes that a store sends: bounded in size and time, checked while they arrive.

``receive(stream, path, size=100, sha256="...", what="model.onnx")``. A store is not trusted.
"""

from __future__ import annotations

import hashlib
import io
import pickletools
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from hnas.export.device.errors import ExportError, Unavailable, one_line

PATIENCE = 30.0  # seconds without a byte, or below _SLOWEST, before a store is given up
_SLOWEST = 1024  # bytes a second
_CHUNK = 2**18
_PICKLED = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".dill", ".npy", ".npz")
_PROTOCOLS = (b"\2", b"\3", b"\4", b"\5")  # those that begin with an opcode of their own
_MOST_OPCODES, _MOST_PICKLED = 200_000, 2**24  # opcodes and bytes that are looked at


class Untrusted(ExportError):
    """Signal that a store or a signature is not what it has to be. Nothing that was received is kept."""


class Incoming(Protocol):
    """The bytes of one file of a store. ``read`` returns at most ``n`` bytes, and none at the end."""

    def read(self, n: int, /) -> bytes:
        """Return some of the next bytes, as soon as there are any."""

    def close(self) -> None:
        """End the transfer."""


@contextmanager
def reaching(address: str) -> Iterator[None]:
    """Turn an error of a store's client into Unavailable."""
    try:
        yield
    except Exception as error:  # the clients raise errors of many types
        raise Unavailable(f"{address} refuses or cannot be reached: {one_line(error)}") from error


def receive(
    stream: Incoming, path: Path, *, size: int, sha256: str | None, what: str, patience: float = PATIENCE
) -> None:
    """Write a stream to the new file ``path``. The stream is closed.

    1. ``sha256`` is given: the file has exactly ``size`` bytes and this hash.
    2. It is None: the file has at most ``size`` bytes. The caller checks the content.
    3. Less than 1 KiB/s arrived in the last ``patience`` seconds: the store is given up.

    Raises:
        Untrusted: any of these does not hold.
    """
    digest, count = hashlib.sha256(), 0
    begun, counted = time.monotonic(), 0  # start of the window of case 3, and the bytes that had arrived by then
    try:
        with path.open("xb") as file:
            while chunk := stream.read(min(_CHUNK, size - count + 1)):
                count += len(chunk)
                if count > size:
                    raise Untrusted(
                        f"{what} has more than the {size} bytes that {'are stated' if sha256 else 'it may'}"
                    )
                digest.update(chunk)
                file.write(chunk)
                spent = time.monotonic() - begun
                if spent > patience:  # case 3
                    if count - counted < _SLOWEST * spent:
                        raise Untrusted(f"{what} arrives too slowly: {count - counted} bytes in {spent:.0f} s")
                    begun, counted = time.monotonic(), count
    finally:
        stream.close()
    if sha256 is None:  # case 2
        return
    if count != size:
        raise Untrusted(f"{what} is cut off: {count} bytes arrived, {size} are stated")
    if digest.hexdigest() != sha256:
        raise Untrusted(f"{what} is not what was published: its sha256 is {digest.hexdigest()[:12]}, not {sha256[:12]}")


def refuse_pickles(folder: Path, names: Iterable[str]) -> None:
    """Raise Untrusted for a file that Python could unpickle, which runs the code in it. Nothing is unpickled here.

    1. The suffix is one of pickled files.
    2. It is a zip archive, as torch writes pickles into.
    3. It begins with a pickle of protocol 2 or newer, up to its end, 200,000 opcodes or 16 MiB. An older pickle has no
       mark, and is not recognised: plain text can be one.
    """
    for name in names:
        if name.lower().endswith(_PICKLED):  # case 1
            raise Untrusted(f"{name} may be a pickle, which a bundle never has")
        with (folder / name).open("rb") as file:
            head = file.read(4)
            if head == b"PK\x03\x04":  # case 2
                raise Untrusted(f"{name} is a zip archive, which may hold a pickle; a bundle never has one")
            if head[:1] == b"\x80" and head[1:2] in _PROTOCOLS and _is_pickle(file):  # case 3
                raise Untrusted(f"{name} is a pickle, which a bundle never has")


class _Start(io.BytesIO):
    """The start of a file, which says whether more was asked for."""

    ended = False

    def read(self, n: int | None = -1, /) -> bytes:
        found = super().read(n)
        self.ended |= n is not None and len(found) < n
        return found

    def readline(self, n: int | None = -1, /) -> bytes:
        found = super().readline(n)
        self.ended |= not found.endswith(b"\n")
        return found


def _is_pickle(file: io.BufferedReader) -> bool:
    """Return whether the opcodes of a pickle stand in the file, up to its STOP or to a limit. None is executed."""
    file.seek(0)
    start = _Start(file.read(_MOST_PICKLED))
    more = bool(file.read(1))
    try:
        for count, _ in enumerate(pickletools.genops(start)):
            if count >= _MOST_OPCODES:
                return True
    except Exception:  # noqa: BLE001  # genops raises whatever the bytes lead to
        return more and start.ended  # valid up to the limit of bytes
    return True
