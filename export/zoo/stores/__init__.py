"""Stores that hold bundles, each in the file of its scheme: ``open_store("s3://bucket/models")``.

What a store sends is not trusted: `hnas.export.zoo.fetch` checks all of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Protocol, cast

from hnas.export.zoo.arrival import Incoming

PACKED_SUFFIX = ".tar"
_PLAIN, _PACKED = "folder", "packed"  # the stores of addresses without a scheme


class BundleStore(Protocol):
    """One place with bundles. A file of a bundle is named as in its manifest, such as ``artifact/model.onnx``."""

    def names(self) -> list[str]:
        """Return the names of the bundles, sorted.

        Raises:
            Unavailable: the store cannot be reached.
        """

    def open(self, name: str, file: str) -> Incoming:
        """Return the bytes of one file of a bundle.

        Raises:
            FileNotFoundError: there is no such bundle, or it has no such file.
            Unavailable, Untrusted: the store cannot be reached, or it leads elsewhere.
        """

    def put(self, name: str, folder: Path, files: Sequence[str]) -> None:
        """Publish the ``files`` of a folder, in their order, in place of what ``name`` was. The manifest is the last.

        Raises:
            Unavailable: the store refuses, or cannot be reached.
        """


class _Module(Protocol):
    def connect(self, place: str, hosts: Sequence[str]) -> BundleStore: ...


def schemes() -> list[str]:
    """Return the schemes that have a store, sorted."""
    return sorted(each.name for each in iter_modules(__path__) if each.name not in (_PLAIN, _PACKED))


def open_store(address: str, hosts: Sequence[str] = ()) -> BundleStore:
    """Return the store at an address: a folder, a packed bundle (.tar), or one with a scheme.

    ``hosts``: hosts besides the store's own that a request may go to.

    Raises:
        ValueError: the scheme or the rest of the address is not known.
        Unavailable: a package is missing.
    """
    found = re.match(r"([\w.+-]+)://(.*)", address)
    if found and found[1] not in schemes():
        known = ", ".join(f"{each}://" for each in schemes())
        raise ValueError(f"no store of the kind {found[1]}://; known: a folder, {known}")
    plain = _PACKED if address.endswith(PACKED_SUFFIX) else _PLAIN
    scheme, place = (found[1], found[2]) if found else (plain, address)
    module = cast("_Module", import_module(f"{__name__}.{scheme}"))
    return module.connect(place.rstrip("/") or place, hosts)
