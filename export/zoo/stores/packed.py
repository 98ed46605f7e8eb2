"""A packed bundle as a store of one: ``connect("model.tar", ())``. Nothing is ever extracted by name."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from hnas.export.bundle.card import MANIFEST
from hnas.export.device.disk import open_plain
from hnas.export.zoo.arrival import Incoming, Untrusted

NAME = "bundle"  # the name of the one bundle
_MOST_MEMBERS = 1100
_BLOCK = 512  # bytes of a header; content fills whole blocks


class _Packed:
    def __init__(self, file: Path) -> None:
        self._file = file
        self._members = _members(file)

    def names(self) -> list[str]:
        return [NAME]

    def open(self, name: str, file: str) -> Incoming:
        found = self._members.get(file)
        if name != NAME or found is None:
            raise FileNotFoundError(f"{self._file} has no {name}/{file}")
        return _Slice(self._file, *found)

    def put(self, name: str, folder: Path, files: Sequence[str]) -> None:  # noqa: ARG002  # as of every store
        raise ValueError(f"{self._file} is a packed bundle; hnas-deploy pack writes one")


class _Slice:
    """The bytes of one member, at most as many as the header states."""

    def __init__(self, file: Path, start: int, size: int) -> None:
        self._stream, self._left = open_plain(file), size
        self._stream.seek(start)

    def read(self, n: int, /) -> bytes:
        found = self._stream.read(min(n, self._left))
        self._left -= len(found)
        return found

    def close(self) -> None:
        self._stream.close()


def _members(file: Path) -> dict[str, tuple[int, int]]:
    """Return name -> (start, size) of every member. Raise Untrusted for anything but plain files, each there once.

    Only the headers of USTAR as `hnas.export.zoo.publish.pack` writes them are read: POSIX.1-1988, 512 bytes each.
    """
    found: dict[str, tuple[int, int]] = {}
    try:
        with open_plain(file) as stream:
            whole = os.fstat(stream.fileno()).st_size
            while (header := stream.read(_BLOCK)) != bytes(_BLOCK):
                name, size = _read_header(header)
                if name in found or len(found) >= _MOST_MEMBERS:
                    raise ValueError(f"{name[:80]!r} is there twice, or there are more than {_MOST_MEMBERS} files")
                if size > whole - stream.tell():
                    raise ValueError(f"it is cut off in {name[:80]!r}")
                found[name] = stream.tell(), size
                stream.seek(-size // _BLOCK * -_BLOCK, os.SEEK_CUR)
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {file}") from None
    except (OSError, ValueError) as error:
        raise Untrusted(f"{file} is no packed bundle: {error}") from None
    if MANIFEST not in found:
        raise Untrusted(f"{file} is no packed bundle: it has no {MANIFEST}")
    return found


def _read_header(header: bytes) -> tuple[str, int]:
    """Return the name and the size of a member. Raise ValueError unless it is a plain file."""
    if len(header) != _BLOCK or header[257:265] != b"ustar\x0000":
        raise ValueError("it is cut off, or not in the format USTAR")
    name, prefix = (header[a:b].partition(b"\0")[0].decode() for a, b in ((0, 100), (345, 500)))
    name = f"{prefix}/{name}" if prefix else name
    size = re.fullmatch(rb"([0-7]{11})[\0 ]", header[124:136])
    if header[156:157] != b"0" or size is None:
        raise ValueError(f"{name[:80]!r} is no plain file")
    return name, int(size[1], 8)


def connect(place: str, _hosts: Sequence[str]) -> _Packed:
    """Return the store of one packed file."""
    return _Packed(Path(place))
