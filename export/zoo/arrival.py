"""Take the bytes that a store sends: bounded in size and time, checked while they arrive.

``receive(stream, path, size=100, sha256="...", what="model.onnx")``. A store is not trusted.
"""

from __future__ import annotations

import hashlib
import io
import pickletools
import time
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from hnas.export.device.errors import ExportError

PATIENCE = 30.0  # seconds without a byte, or below _SLOWEST, before a store is given up
_SLOWEST = 1024  # bytes a second
_CHUNK = 2**18
_PICKLED = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".dill", ".npy", ".npz")
_MOST_OPCODES = 200_000


class Untrusted(ExportError):
    """Signal that a store or a signature is not what it has to be. Nothing that was received is kept."""


class Incoming(Protocol):
    """The bytes of one file of a store. ``read`` returns at most ``n`` bytes, and none at the end."""

    def read(self, n: int, /) -> bytes:
        """Return some of the next bytes, as soon as there are any."""

    def close(self) -> None:
        """End the transfer."""


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
    2. It is an archive with a pickle inside, as torch writes it.
    3. All of it, or its start up to 200,000 opcodes, is a pickle.
    """
    for name in names:
        if name.lower().endswith(_PICKLED):  # case 1
            raise Untrusted(f"{name} may be a pickle, which a bundle never has")
        with (folder / name).open("rb") as file:
            head = file.read(4)
            archive = head == b"PK\x03\x04" and _archives_pickle(folder / name)  # case 2
            if archive or (head[:1] == b"\x80" and _is_pickle(file)):
                raise Untrusted(f"{name} is a pickle, which a bundle never has")


def _archives_pickle(path: Path) -> bool:
    with suppress(zipfile.BadZipFile, OSError, ValueError, NotImplementedError), zipfile.ZipFile(path) as archive:
        return any(name.lower().endswith(_PICKLED) for name in archive.namelist())
    return True  # a damaged archive may still open elsewhere


def _is_pickle(file: io.BufferedReader) -> bool:
    """Return whether the opcodes of a pickle stand in the file, up to its STOP or to the limit. None is executed."""
    file.seek(0)
    count = 0
    try:
        for _ in pickletools.genops(file):
            count += 1
            if count >= _MOST_OPCODES:
                return True
    except Exception:  # noqa: BLE001  # genops raises whatever the bytes lead to
        return False
    return True
