"""A packed bundle as a store of one: ``connect("model.tar", ())``. Nothing is ever extracted by name."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

from hnas.export.bundle.card import MANIFEST
from hnas.export.device.disk import open_plain
from hnas.export.zoo.arrival import Incoming, Untrusted

NAME = "bundle"  # the name of the one bundle
_MOST_MEMBERS = 1100


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
    """Return name -> (start, size) of every member. Raise Untrusted for anything but plain files, each there once."""
    found: dict[str, tuple[int, int]] = {}
    try:
        with open_plain(file) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            whole = os.fstat(stream.fileno()).st_size
            while (member := archive.next()) is not None:
                if not member.isreg() or member.issparse() or member.name in found or len(found) >= _MOST_MEMBERS:
                    raise Untrusted(f"{file} holds {member.name[:80]!r}, which is no plain file or is there twice")
                if member.size > whole - member.offset_data:
                    raise Untrusted(f"{file} is cut off in {member.name[:80]!r}")
                found[member.name] = member.offset_data, member.size
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {file}") from None
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise Untrusted(f"{file} is no packed bundle: {error}") from None
    if MANIFEST not in found:
        raise Untrusted(f"{file} is no packed bundle: it has no {MANIFEST}")
    return found


def connect(place: str, _hosts: Sequence[str]) -> _Packed:
    """Return the store of one packed file."""
    return _Packed(Path(place))
